package main

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node/swarm"
)

// maxPort is the highest port of UDP.
const maxPort = 1<<16 - 1

// Validate refuses flags that do not go together, before anything is sent.
func (c *nodeJoinCmd) Validate() error {
	if _, err := groupcomm.ParseRoles(c.Roles); err != nil {
		return fmt.Errorf("--roles: %w", err)
	}
	old := c.Interface != groupcomm.Current.String()
	switch {
	case c.CoAPPort < 0 || c.CoAPPort > maxPort, c.CoAPSPort < 0 || c.CoAPSPort > maxPort:
		return errors.New("--coap-port and --coaps-port: 1 to 65535")
	case (c.Identity != "") != (c.KeyFile != ""):
		return errors.New("--identity and --key-file go together")
	case (c.CertFile != "") != (c.CertKeyFile != ""):
		return errors.New("--cert-file and --cert-key-file go together")
	case (c.BrokerCert != "") != (c.BrokerKey != ""):
		return errors.New("--broker-cert-file and --broker-key-file go together")
	case !c.MQTT && (c.BrokerCA != "" || c.BrokerCert != ""):
		return errors.New("--broker-ca-file, --broker-cert-file and --broker-key-file are for --mqtt")
	case c.Poll < 0 || c.Sleep < 0:
		return errors.New("--poll and --sleep: a negative time")
	case c.MQTT && c.Multicast != "":
		return errors.New("--mqtt and --rekey-multicast: one of them brings the rekeys")
	case old && (c.MQTT || c.Multicast != "" || c.Sleep != 0):
		return errors.New("--mqtt, --rekey-multicast and --sleep are for --interface current: the older drafts have no parameter that asks for MQTT, and their nodes observe the group or ask for news every --poll")
	case (c.Proxy != "") != (c.ProxyName != "") || c.Proxy != "" && !c.OSCORE:
		return errors.New("--proxy goes with --proxy-name and --oscore")
	case old && c.OSCORE:
		return errors.New("--oscore is for --interface current: the older drafts have the DTLS profile alone, and their token POST no nonces and no IDs that a Security Context could be made of")
	case c.OSCORE && (c.RPK || c.RPKKeyFile != ""):
		return errors.New("--rpk is for associations over DTLS, --oscore does without")
	}
	return nil
}

// Validate refuses flags that a server in the group has no use for.
func (c *nodeServeCmd) Validate() error { return c.fits(groupcomm.Responder) }

// Validate refuses flags that a client in the group has no use for.
func (c *nodeSendCmd) Validate() error {
	if c.Count < 0 || c.Wait < 0 || c.Every < 0 {
		return errors.New("--count, --wait and --every: not below 0")
	}
	return c.fits(groupcomm.Requester)
}

func (c *nodeTalkFlags) fits(needed groupcomm.Roles) error {
	if err := c.nodeJoinCmd.Validate(); err != nil {
		return err
	}
	roles, _ := groupcomm.ParseRoles(c.Roles)
	switch {
	case roles == groupcomm.Monitor && needed == groupcomm.Requester:
		return errors.New("--roles: a monitor sends nothing")
	case roles&needed == 0 && roles != groupcomm.Monitor:
		return fmt.Errorf("--roles: this takes the role %s", needed)
	case c.Interface != groupcomm.Current.String() || c.Sleep != 0 || c.Once:
		return errors.New("--interface, --sleep and --once are for `gateway node join`")
	}
	return nil
}

// Validate refuses what makes no fleet.
func (c *nodeSwarmCmd) Validate() error {
	switch {
	case c.Nodes < 0 || c.Nodes > swarm.MaxNodes:
		return fmt.Errorf("--nodes: 1 to %d", swarm.MaxNodes)
	case len(c.CSV) == 0 && (c.KeyFile == "" || c.Nodes == 0):
		return errors.New("the nodes have no credentials: name files by --csv, as gateway node enroll reads and writes them, or --nodes and a key for all by --key-file")
	case c.CoAPPort < 1 || c.CoAPPort > maxPort, c.CoAPSPort < 1 || c.CoAPSPort > maxPort:
		return errors.New("--coap-port and --coaps-port: 1 to 65535")
	case c.AtOnce < 1:
		return errors.New("--at-once: at least 1")
	case c.Every < 0 || c.Move < 0 || c.For < 0 || c.Flood < 0 || c.Report <= 0:
		return errors.New("--every, --move, --flood, --for and --report: nothing below 0, and --report above it")
	}
	return nil
}
