package dtls12

import (
	"bytes"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// FuzzMessages: no message body makes a decoder panic, and hellos that are read
// are written again as they mean.
func FuzzMessages(f *testing.F) {
	k := newKey(f, "P-256")
	h := Connect(accepting(k, k), epochStart)
	f.Add(h.hello.encode())
	f.Add((&serverHello{suite: record.ECDSACCM8, extended: true, clientType: []byte{rawPublicKey}, serverType: []byte{rawPublicKey}, secure: true, formats: true, cid: []byte("x")}).encode())
	f.Add(encodeVerifyRequest([]byte("cookie")))
	f.Add(encodeCertificate(k.spki))
	f.Add(encodeChain([][]byte{k.spki, k.spki}))
	f.Add(encodeCertificateRequest())
	f.Add(appendSigned(ecParams(groupX25519, make([]byte, 32)), schemeES256, make([]byte, 70)))
	f.Add(appendSigned(nil, schemeES256, make([]byte, 70)))
	f.Add(appendVector(nil, 2, []byte("identity")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeClientHello(b); err == nil {
			again, err := decodeClientHello(c.encode())
			if err != nil && len(c.encode()) < 1<<16 && len(c.groups) > 0 && len(c.schemes) > 0 {
				t.Fatalf("%x is read, %x is not: %v", b, c.encode(), err)
			}
			if err == nil && (again.Random != c.Random || !bytes.Equal(again.Cookie, c.Cookie) || !bytes.Equal(again.cid, c.cid)) {
				t.Fatalf("%+v became %+v", c, again)
			}
		}
		if s, err := decodeServerHello(b); err == nil {
			if again, err := decodeServerHello(s.encode()); err != nil || again.suite != s.suite || !bytes.Equal(again.cid, s.cid) {
				t.Fatalf("%+v became %+v, %v", s, again, err)
			}
		}
		if c, err := decodeVerifyRequest(b); err == nil && !bytes.Equal(encodeVerifyRequest(c)[2:], b[2:]) {
			t.Fatal("HelloVerifyRequest")
		}
		if spki, err := decodeCertificate(b); err == nil {
			if !bytes.Equal(encodeCertificate(spki), b) {
				t.Fatal("Certificate")
			}
			if once, err := canonical(spki); err == nil {
				if twice, err := canonical(once); err != nil || !bytes.Equal(once, twice) {
					t.Fatal("SubjectPublicKeyInfo")
				}
			}
		}
		if chain, err := decodeChain(b); err == nil && !bytes.Equal(encodeChain(chain), b) {
			t.Fatal("Certificate with certificates")
		}
		if m, err := decodeServerKeyExchange(b); err == nil && !bytes.Equal(appendSigned(ecParams(m.group, m.point), m.scheme, m.signature), b) {
			t.Fatal("ServerKeyExchange")
		}
		if s, v, err := decodeCertificateVerify(b); err == nil && !bytes.Equal(appendSigned(nil, s, v), b) {
			t.Fatal("CertificateVerify")
		}
		for _, psk := range []bool{true, false} {
			_, _ = decodeClientKeyExchange(b, psk)
		}
		_, _ = decodeCertificateRequest(b, schemeES256)
		_, _, _ = nextFragment(b)
	})
}

// split cuts fuzz input into datagrams: two bytes of length before each.
func split(b []byte) (out [][]byte) {
	for len(b) >= 2 && len(out) < 64 {
		n := min(int(b[0])<<8|int(b[1]), len(b)-2)
		out = append(out, b[2:2+n])
		b = b[2+n:]
	}
	return out
}

func join(datagrams [][]byte) (b []byte) {
	for _, d := range datagrams {
		b = append(appendUint(b, 2, len(d)), d...)
	}
	return b
}

// fuzzed checks what must hold whatever came.
func fuzzed(t *testing.T, h *Handshake, sent *int) {
	t.Helper()
	for _, d := range h.Output() {
		if *sent += len(d); len(d) > mtu+maxMessage {
			t.Fatalf("a datagram of %d bytes", len(d))
		}
	}
	if h.held < 0 || h.held > maxAssembly || len(h.ahead) > maxAhead || len(h.early) > maxEarly || len(h.transcript) > 8*maxMessage {
		t.Fatalf("held %d, ahead %d, early %d, transcript %d", h.held, len(h.ahead), len(h.early), len(h.transcript))
	}
}

// FuzzServer: whatever a client sends, the server does not panic, keeps little
// and does not finish.
func FuzzServer(f *testing.F) {
	sk, ck := newKey(f, "Ed25519"), newKey(f, "Ed25519")
	var fromClient, fromServer [][]byte
	p := newPair(f, accepting(ck, sk), accepting(sk, ck))
	p.tap = func(toServer bool, b []byte) bool {
		if toServer {
			fromClient = append(fromClient, bytes.Clone(b))
		} else {
			fromServer = append(fromServer, bytes.Clone(b))
		}
		return false
	}
	p.run()
	p.agreed(f)
	f.Add(join(fromClient))
	f.Add(join(fromServer))
	cfg := accepting(sk, ck)
	cfg.CID = []byte("gateway1")
	cfg.PSK = func(identity []byte) ([]byte, error) { return make([]byte, 16), nil }
	f.Fuzz(func(t *testing.T, b []byte) {
		var h *Handshake
		now := epochStart
		sent, got := 0, 0
		for _, d := range split(b) {
			got += len(d)
			if h == nil {
				r, _, err := record.Next(d, 0)
				if err != nil {
					continue
				}
				if hello := ReadClientHello(&r); hello != nil {
					h = Accept(cfg, hello, now)
				}
			} else {
				h.Receive(d, now)
			}
			if h != nil {
				fuzzed(t, h, &sent)
			}
			now = now.Add(50 * time.Millisecond)
		}
		if h == nil {
			return
		}
		if h.Done() && h.result.Identity == nil {
			t.Fatal("done without the client's private key")
		}
		h.Expire(now.Add(time.Hour))
		fuzzed(t, h, &sent)
	})
}

// FuzzClient: the same of a client.
func FuzzClient(f *testing.F) {
	sk, ck := newKey(f, "Ed25519"), newKey(f, "Ed25519")
	var fromServer [][]byte
	p := newPair(f, accepting(ck, sk), accepting(sk, ck))
	p.tap = func(toServer bool, b []byte) bool {
		if !toServer {
			fromServer = append(fromServer, bytes.Clone(b))
		}
		return false
	}
	p.run()
	f.Add(join(fromServer))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := Connect(accepting(ck, sk), epochStart)
		sent := 0
		for i, d := range split(b) {
			h.Receive(d, epochStart.Add(time.Duration(i)*50*time.Millisecond))
			fuzzed(t, h, &sent)
		}
		if h.Done() {
			t.Fatal("done without the server's private key")
		}
	})
}

// FuzzParts: whatever fragments come, what becomes a ClientHello is one that would
// have been read in one piece, and is within its bounds.
func FuzzParts(f *testing.F) {
	k := newKey(f, "P-256")
	hello := Connect(accepting(k, k), epochStart).hello.encode()
	cut := func(order ...int) (out [][]byte) {
		for _, i := range order {
			at := 60 * i
			piece := hello[at:min(at+60, len(hello))]
			m := append(wrap(typeClientHello, 0, hello)[:6], 0, 0, byte(at))
			out = append(out, appendVector(m, 3, piece))
		}
		return out
	}
	f.Add(join(cut(0, 1)))
	f.Add(join(cut(1, 0, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var g *Gathering
		for _, d := range split(b) {
			parts := ReadParts(&record.Record{Type: record.Handshake, Fragment: d})
			for i := range parts {
				p := &parts[i]
				if front := p.Front(); g == nil && front != nil {
					g = Gather(p, front)
				}
				if g == nil || !g.Add(p) {
					continue
				}
				if len(g.whole.body) > maxHello || len(g.whole.pieces) > maxPieces {
					t.Fatalf("%d bytes, %d pieces", len(g.whole.body), len(g.whole.pieces))
				}
				h, _ := g.Hello()
				if h == nil {
					continue
				}
				again := ReadClientHello(&record.Record{Type: record.Handshake, Fragment: h.message})
				if again == nil || again.Random != h.Random || !bytes.Equal(again.params, h.params) {
					t.Fatalf("%x is read in pieces, not in one", h.message)
				}
			}
		}
	})
}
