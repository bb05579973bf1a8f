package bench

import (
	"context"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// groupCreds are the credentials of the two members of a group.
type groupCreds map[string][]byte

func (c groupCreds) Credential(_, kid []byte) ([]byte, bool) {
	cred, ok := c[string(kid)]
	return cred, ok
}

// groupBench is a group with a client and a server.
type groupBench struct {
	client, server   *oscore.Group
	key              *cose.Key // of the client
	clientCred, cred []byte    // of the client, of the Group Manager
	in, out          oscore.Buffer
}

func newGroupBench() (*groupBench, error) {
	gm, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		return nil, err
	}
	b := &groupBench{cred: cose.EncodeCCS("gm", gm)}
	material := oscore.GroupMaterial{
		Gid: []byte{0xb1, 0, 0, 0, 1},
		Algorithms: oscore.GroupAlgorithms{
			AEAD: cose.AlgAESCCM16_64_128, GroupEnc: cose.AlgAESCCM16_64_128,
			Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256,
		},
		CredFormat: cose.HeaderKCCS, GMCred: b.cred, MasterSecret: cose.NewSecret([]byte("benchmark secret")),
	}
	creds := groupCreds{}
	for _, id := range []string{"c", "s"} {
		key, err := cose.GenerateKey(cose.AlgEdDSA)
		if err != nil {
			return nil, err
		}
		creds[id] = cose.EncodeCCS("node", key)
		g, err := oscore.NewGroup(oscore.GroupConfig{Creds: creds})
		if err != nil {
			return nil, err
		}
		if err := g.Install(material, &oscore.GroupSender{ID: []byte(id), Key: key, Cred: creds[id]}, nil, false); err != nil {
			return nil, err
		}
		if b.client == nil {
			b.client, b.key, b.clientCred = g, key, creds[id]
		} else {
			b.server = g
		}
	}
	return b, nil
}

// unprotect reads one message again and again.
func (b *groupBench) unprotect(p *coap.Message) func() error {
	return func() error {
		if w := b.server.Window([]byte("c")); w != nil {
			w.Reset()
		}
		_, x, err := b.server.UnprotectRequest(&b.in, p)
		if err == nil {
			x.Recycle()
		}
		return err
	}
}

// protect protects one message again and again: in group mode, or for a member.
func (b *groupBench) protect(ctx context.Context, m *coap.Message, to []byte) func() error {
	return func() error {
		var x *oscore.GroupExchange
		var err error
		if to == nil {
			_, x, err = b.client.ProtectRequest(ctx, &b.out, m)
		} else {
			_, x, err = b.client.ProtectRequestTo(ctx, &b.out, to, m)
		}
		if err == nil {
			x.Recycle()
		}
		return err
	}
}

// aad is how long the external_aad is: two credentials, the option, and some 40 bytes
// of identifiers and heads.
func (b *groupBench) aad() int { return len(b.clientCred) + len(b.cred) + 40 }

// oscoreGroup is Group OSCORE in group mode; its floor is the signature.
func oscoreGroup(ctx context.Context, payload int) (*oscoreCase, error) {
	b, err := newGroupBench()
	if err != nil {
		return nil, err
	}
	m := oscoreMessage(payload)
	p, _, err := b.client.ProtectRequest(ctx, nil, m)
	if err != nil {
		return nil, err
	}
	// Beside the external_aad, 21 bytes of array head and context, and the ciphertext.
	signed := make([]byte, 21+b.aad()+len(p.Payload)-64)
	sign, verify := b.key.Signer(), b.key.Public().Verifier()
	sig, err := sign(signed)
	if err != nil {
		return nil, err
	}
	return &oscoreCase{
		protect:        b.protect(ctx, m, nil),
		unprotect:      b.unprotect(p),
		floorProtect:   func() error { _, err := sign(signed); return err },
		floorUnprotect: func() error { return verify(signed, sig) },
	}, nil
}

// oscorePairwise is Group OSCORE in pairwise mode; its floor is the AEAD.
func oscorePairwise(ctx context.Context, payload int) (*oscoreCase, error) {
	b, err := newGroupBench()
	if err != nil {
		return nil, err
	}
	m, server := oscoreMessage(payload), []byte("s")
	p, _, err := b.client.ProtectRequestTo(ctx, nil, server, m)
	if err != nil {
		return nil, err
	}
	aead, err := cose.NewAEAD(cose.AlgAESCCM16_64_128, make([]byte, 16))
	if err != nil {
		return nil, err
	}
	nonce, aad := make([]byte, aead.NonceSize()), make([]byte, 11+b.aad())
	plain := make([]byte, len(p.Payload)-aead.Overhead())
	sealed := aead.Seal(nil, nonce, plain, aad)
	out, opened := make([]byte, 0, len(sealed)), make([]byte, 0, len(plain))
	return &oscoreCase{
		protect:        b.protect(ctx, m, server),
		unprotect:      b.unprotect(p),
		floorProtect:   func() error { out = aead.Seal(out[:0], nonce, plain, aad); return nil },
		floorUnprotect: func() (err error) { opened, err = aead.Open(opened[:0], nonce, sealed, aad); return err },
	}, nil
}
