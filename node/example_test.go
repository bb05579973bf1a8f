package node_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// A node from its credential to the rekeys of its group.
func Example() {
	ctx := context.Background()
	client, err := node.LoadClient("groupgate-data/" + node.ClientFile)
	if err != nil {
		log.Print(err)
		return
	}

	// 1. A token and its key, from the Authorization Server.
	as, err := node.DialDTLS(ctx, "127.0.0.1:5684", []byte(client.Identity), client.Key.Bytes())
	if err != nil {
		log.Print(err)
		return
	}
	roles := groupcomm.Requester | groupcomm.Responder
	access, err := node.RequestToken(ctx, as, node.TokenRequest{
		Audience: client.Audience,
		Scope:    groupcomm.Scope{{Group: "sensors", Roles: roles}},
	})
	if err = errors.Join(err, as.Close()); err != nil {
		log.Print(err)
		return
	}

	// 2. The token goes to the Group Manager, which says what a join needs.
	plain, err := node.DialUDP(ctx, "127.0.0.1:5683")
	if err != nil {
		log.Print(err)
		return
	}
	transfer, err := node.PostToken(ctx, plain, access)
	if err = errors.Join(err, plain.Close()); err != nil {
		log.Print(err)
		return
	}

	// 3. An association with the key of the token, and the join over it.
	dial := func(ctx context.Context) (node.Transport, error) {
		return node.DialDTLS(ctx, "127.0.0.1:5684", access.Identity(), access.Key.Bytes())
	}
	t, err := dial(ctx)
	if err != nil {
		log.Print(err)
		return
	}
	member, err := node.New(node.Config{
		Group: "sensors", Roles: roles, Transfer: transfer, Subject: "node-1", WantCreds: true, Redial: dial,
		OnEvent: func(e node.Event) { fmt.Println(e.Kind, e.Version) },
	}, t)
	if err != nil {
		log.Print(err)
		return
	}
	defer member.Close()
	if err := member.Join(ctx); err != nil {
		log.Print(err)
		return
	}

	// 4. Rekeys, until the membership ends. member.State has the keys.
	if err := member.Follow(ctx); errors.Is(err, node.ErrEvicted) {
		fmt.Println("evicted")
	}
}

// The token may go in psk_identity instead of being posted: no plain CoAP is
// needed, and the challenge comes from the association.
func ExampleConfig_tokenInIdentity() {
	ctx := context.Background()
	var access *node.Access // from RequestToken

	join := func() error {
		t, err := node.DialDTLS(ctx, "gm.example:5684", access.Token, access.Key.Bytes())
		if err != nil {
			return err
		}
		member, err := node.New(node.Config{Group: "sensors", Roles: groupcomm.Responder}, t)
		if err != nil {
			return err
		}
		return member.Join(ctx)
	}
	_ = join
}

// Errors of a Group Manager can be told apart by code and identifier.
func ExampleError() {
	var err error = &node.Error{Op: "join", Code: 0x80, ID: 3}
	fmt.Println(errors.Is(err, groupcomm.ErrPoP), errors.Is(err, node.ErrUnauthorized))
	fmt.Println(err)
	// Output:
	// true false
	// node: join: 4.00 error 3 (Invalid proof-of-possession evidence)
}

// The identity that names a token posted before (RFC 9202, Section 3.3.1).
func ExampleAccess_Identity() {
	access := &node.Access{KID: []byte{0x3d, 0x02, 0x78, 0x33, 0xfc, 0x62, 0x67, 0xce}}
	fmt.Printf("%x\n", access.Identity())
	// Output: a108a101a2010402483d027833fc6267ce
}
