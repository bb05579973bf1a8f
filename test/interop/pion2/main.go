// Command pion2 is a client of pion/dtls v2, the stack of nodes that have not
// moved to v3: it shakes hands with a pre-shared key, sends what it reads from
// standard input as datagrams and prints what comes back. It is a module of its
// own, so that the gateway's needs nothing of v2.
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/pion/dtls/v2"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: pion2 ADDRESS IDENTITY KEY")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(addr, identity, hexKey string) error {
	key, err := hex.DecodeString(hexKey)
	if err != nil {
		return err
	}
	at, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := dtls.DialWithContext(ctx, "udp", at, &dtls.Config{
		PSK:                  func([]byte) ([]byte, error) { return key, nil },
		PSKIdentityHint:      []byte(identity),
		CipherSuites:         []dtls.CipherSuiteID{dtls.TLS_PSK_WITH_AES_128_CCM_8},
		ExtendedMasterSecret: dtls.RequireExtendedMasterSecret,
	})
	if err != nil {
		return err
	}
	defer c.Close()
	go io.Copy(c, os.Stdin)
	_, err = io.Copy(os.Stdout, c)
	return err
}
