package oscore_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// roster knows the credentials of a group's members by Sender ID, as the Group Manager
// told them. It is an [oscore.CredentialSource].
type roster map[string][]byte

func (r roster) Credential(_, kid []byte) ([]byte, bool) {
	cred, ok := r[string(kid)]
	return cred, ok
}

// party is a group with three members.
type party struct {
	material oscore.GroupMaterial
	creds    roster
	senders  map[string]*oscore.GroupSender
}

func newParty() *party {
	key := func() *cose.Key {
		k, err := cose.GenerateKey(cose.AlgEdDSA)
		if err != nil {
			log.Fatal(err)
		}
		return k
	}
	p := &party{creds: roster{}, senders: map[string]*oscore.GroupSender{}}
	p.material = oscore.GroupMaterial{
		Gid: []byte{0x44, 0x61, 0x6c}, CredFormat: cose.HeaderKCCS, GMCred: cose.EncodeCCS("gm", key()),
		Algorithms: oscore.GroupAlgorithms{
			AEAD: cose.AlgAESCCM16_64_128, GroupEnc: cose.AlgAESCCM16_64_128,
			Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256,
		},
		MasterSecret: cose.NewSecret([]byte("secret of version 0")),
	}
	for _, id := range []string{"a", "b", "c"} {
		k := key()
		p.creds[id] = cose.EncodeCCS("node "+id, k)
		p.senders[id] = &oscore.GroupSender{ID: []byte(id), Key: k, Cred: p.creds[id]}
	}
	return p
}

// member has what a join gives.
func (p *party) member(id string, cfg oscore.GroupConfig) *oscore.Group {
	cfg.Creds = p.creds
	g, err := oscore.NewGroup(cfg)
	if err != nil {
		log.Fatal(err)
	}
	if err := g.Install(p.material, p.senders[id], nil, false); err != nil {
		log.Fatal(err)
	}
	return g
}

// One request, in group mode, is answered by two servers; then one for a single server,
// in pairwise mode, under the keys of a rekey.
func ExampleGroup() {
	ctx := context.Background()
	p := newParty()
	client := p.member("a", oscore.GroupConfig{})
	servers := []*oscore.Group{p.member("b", oscore.GroupConfig{}), p.member("c", oscore.GroupConfig{})}
	answer := func(server *oscore.Group, protected *coap.Message) *coap.Message {
		request, x, err := server.UnprotectRequest(nil, protected)
		if err != nil {
			log.Fatal(err)
		}
		response, err := x.Protect(ctx, nil, &coap.Message{Code: coap.Content, Payload: []byte(fmt.Sprintf("%v in %v mode", request.Code, x.Mode()))})
		if err != nil {
			log.Fatal(err)
		}
		return response
	}
	read := func(x *oscore.GroupExchange, protected *coap.Message) {
		response, who, err := x.Unprotect(nil, protected)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s answers under %x: %s\n", who.KID, who.Gid, response.Payload)
	}

	protected, exchange, err := client.ProtectRequest(ctx, nil, &coap.Message{Code: coap.GET})
	if err != nil {
		log.Fatal(err)
	}
	for _, server := range servers {
		read(exchange, answer(server, protected))
	}

	p.material.Gid, p.material.MasterSecret = []byte{0x44, 0x61, 0x6d}, cose.NewSecret([]byte("secret of version 1"))
	for id, g := range map[string]*oscore.Group{"a": client, "b": servers[0], "c": servers[1]} {
		if err := g.Install(p.material, p.senders[id], nil, false); err != nil {
			log.Fatal(err)
		}
	}
	if protected, exchange, err = client.ProtectRequestTo(ctx, nil, []byte("c"), &coap.Message{Code: coap.POST}); err != nil {
		log.Fatal(err)
	}
	read(exchange, answer(servers[1], protected))
	// Output:
	// b answers under 44616c: GET in group mode
	// c answers under 44616c: GET in group mode
	// c answers under 44616d: POST in pairwise mode
}

// A member that is started again goes on with its keys: what it served it does not serve
// again, and its numbers go on behind all that it may have used.
func ExampleGroupFile() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p := newParty()
	protected, _, err := p.member("a", oscore.GroupConfig{}).ProtectRequest(ctx, nil, &coap.Message{Code: coap.GET})
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		file, err := oscore.OpenGroupFile(filepath.Join(dir, "b"))
		if err != nil {
			log.Fatal(err)
		}
		server := p.member("b", oscore.GroupConfig{Store: file})
		if _, _, err = server.UnprotectRequest(nil, protected); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("served")
		}
		own, _, err := server.ProtectRequest(ctx, nil, &coap.Message{Code: coap.GET})
		if err != nil {
			log.Fatal(err)
		}
		value, _ := own.Options.Get(coap.OSCOREOption)
		option, err := oscore.DecodeOption(value)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("Partial IV %x\n", option.PIV)
		if err := file.Close(); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// served
	// Partial IV 00
	// 4.01 oscore: Replay detected
	// Partial IV 0100
}
