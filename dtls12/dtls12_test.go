package dtls12

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

var epochStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var clientAddr = netip.MustParseAddrPort("192.0.2.1:5000")

func newKey(t testing.TB, kind string) *Key {
	t.Helper()
	var signer crypto.Signer
	var err error
	if kind == "Ed25519" {
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	} else {
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// pair is a client and a server with a network between that has its own time.
type pair struct {
	now            time.Time
	client, server *Handshake
	serverCfg      *Config
	cookies        *Cookies
	queue          []datagram // in the order of arrival
	rng            *mrand.Rand
	lose, double   float64
	late           float64
	tap            func(fromClient bool, b []byte) (lose bool)
	hellos         int // that were answered without state
}

type datagram struct {
	at       time.Time
	toServer bool
	b        []byte
}

func newPair(t testing.TB, client, server *Config) *pair {
	t.Helper()
	p := &pair{now: epochStart, serverCfg: server, cookies: NewCookies(), rng: mrand.New(mrand.NewPCG(1, 2))}
	p.client = Connect(client, p.now)
	return p
}

// carry takes what is to be sent into the network.
func (p *pair) carry(toServer bool, out [][]byte) {
	for _, b := range out {
		if p.tap != nil && p.tap(toServer, b) || p.rng.Float64() < p.lose {
			continue
		}
		n := 1
		if p.rng.Float64() < p.double {
			n = 2
		}
		for range n {
			delay := 10 * time.Millisecond
			if p.rng.Float64() < p.late {
				delay += time.Duration(p.rng.IntN(1500)) * time.Millisecond
			}
			p.queue = append(p.queue, datagram{p.now.Add(delay), toServer, bytes.Clone(b)})
		}
	}
	slices.SortStableFunc(p.queue, func(a, b datagram) int { return a.at.Compare(b.at) })
}

// deliver is what a gateway does with a datagram.
func (p *pair) deliver(b []byte) {
	if p.server != nil {
		p.server.Receive(b, p.now)
		return
	}
	r, _, err := record.Next(b, 0)
	if err != nil {
		return
	}
	hello := ReadClientHello(&r)
	if hello == nil {
		return
	}
	ok, answer := p.cookies.Verify(nil, hello, clientAddr, p.now)
	if !ok {
		p.hellos++
		p.carry(false, [][]byte{answer})
		return
	}
	p.server = Accept(p.serverCfg, hello, p.now)
}

// run lets time pass until both are done, one failed, or a minute is over.
func (p *pair) run() {
	end := p.now.Add(time.Minute)
	for p.now.Before(end) {
		p.carry(true, p.client.Output())
		if p.server != nil {
			p.carry(false, p.server.Output())
			if (p.client.Err() != nil || p.client.Done()) && (p.server.Err() != nil || p.server.Done()) {
				return
			}
		}
		if p.server == nil && p.client.Err() != nil {
			return
		}
		next := end
		if len(p.queue) > 0 {
			next = p.queue[0].at
		}
		for _, h := range []*Handshake{p.client, p.server} {
			if h != nil && !h.Deadline().IsZero() && h.Deadline().Before(next) {
				next = h.Deadline()
			}
		}
		if next.After(p.now) {
			p.now = next
		}
		for len(p.queue) > 0 && !p.queue[0].at.After(p.now) {
			d := p.queue[0]
			p.queue = p.queue[1:]
			if d.toServer {
				p.deliver(d.b)
			} else {
				p.client.Receive(d.b, p.now)
			}
		}
		for _, h := range []*Handshake{p.client, p.server} {
			if h != nil {
				h.Expire(p.now)
			}
		}
	}
}

// agreed checks that both ends know the same, and that records go through.
func (p *pair) agreed(t testing.TB) {
	t.Helper()
	if !p.client.Done() || p.server == nil || !p.server.Done() {
		var err error
		if p.server != nil {
			err = p.server.Err()
		}
		t.Fatalf("not done: client %v, server %v", p.client.Err(), err)
	}
	c, s := p.client.Result(), p.server.Result()
	if c.Suite != s.Suite || c.Read != s.Write || c.Write != s.Read || !bytes.Equal(c.PeerCID, s.CID) || !bytes.Equal(c.CID, s.PeerCID) {
		t.Fatal("the ends do not agree")
	}
	for _, context := range [][]byte{nil, {}, {1}} {
		a, err1 := c.Export("EXPORTER-x", context, 32)
		b, err2 := s.Export("EXPORTER-x", context, 32)
		if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Fatalf("exporter: %x, %x, %v, %v", a, b, err1, err2)
		}
	}
	none, _ := c.Export("EXPORTER-x", nil, 32)
	empty, _ := c.Export("EXPORTER-x", []byte{}, 32)
	if bytes.Equal(none, empty) {
		t.Fatal("an empty context is as good as none")
	}
}

// accepting is a configuration that takes one peer.
func accepting(key *Key, peer *Key) *Config {
	return &Config{Key: key, Peer: func(spki []byte) error {
		if !bytes.Equal(spki, peer.Public()) {
			return fmt.Errorf("%w: key", ErrUnknown)
		}
		return nil
	}}
}

// TestRawKeys: kinds of keys, with connection IDs both ways, one way and none.
func TestRawKeys(t *testing.T) {
	t.Parallel()
	for _, kinds := range [][2]string{{"P-256", "P-256"}, {"Ed25519", "P-256"}, {"P-256", "Ed25519"}, {"Ed25519", "Ed25519"}} {
		for _, cids := range [][2][]byte{{nil, nil}, {{}, []byte("gateway1")}, {[]byte("node"), []byte("gateway1")}, {nil, []byte("gateway1")}, {{}, nil}} {
			t.Run(fmt.Sprintf("%s/%q/%q", kinds, cids[0], cids[1]), func(t *testing.T) {
				ck, sk := newKey(t, kinds[0]), newKey(t, kinds[1])
				cc, sc := accepting(ck, sk), accepting(sk, ck)
				cc.CID, sc.CID = cids[0], cids[1]
				p := newPair(t, cc, sc)
				p.run()
				p.agreed(t)
				if p.hellos != 1 {
					t.Errorf("%d hellos without cookie", p.hellos)
				}
				c, s := p.client.Result(), p.server.Result()
				if c.Suite != record.ECDSACCM8 || !bytes.Equal(c.PeerKey, sk.Public()) || !bytes.Equal(s.PeerKey, ck.Public()) {
					t.Error("another suite, or other keys")
				}
				both := cids[0] != nil && cids[1] != nil
				if (c.PeerCID != nil) != both || (len(s.PeerCID) > 0) != (both && len(cids[0]) > 0) {
					t.Errorf("connection IDs %q and %q", c.PeerCID, s.PeerCID)
				}
			})
		}
	}
}

// TestLossy: handshakes come through whatever is lost, doubled or late, and no
// record number is used twice.
func TestLossy(t *testing.T) {
	t.Parallel()
	ck, sk := newKey(t, "P-256"), newKey(t, "P-256")
	done := 0
	const runs = 300
	for seed := range uint64(runs) {
		cc, sc := accepting(ck, sk), accepting(sk, ck)
		cc.CID, sc.CID = []byte{}, []byte("gateway1")
		p := newPair(t, cc, sc)
		p.rng = mrand.New(mrand.NewPCG(seed, 3))
		p.lose, p.double, p.late = 0.2, 0.2, 0.2
		seen := map[string]bool{}
		p.tap = func(toServer bool, b []byte) bool {
			for len(b) > 0 {
				size := 0
				if toServer {
					size = 8
				}
				r, rest, err := record.Next(b, size)
				if err != nil {
					t.Fatalf("what is sent is no record: %v", err)
				}
				id := fmt.Sprint(toServer, r.Epoch, r.Seq)
				// RFC 6347, Section 4.2.1: that of a HelloVerifyRequest is the
				// client's, and used again by the ServerHello.
				if verify := r.Type == record.Handshake && r.Epoch == 0 && (r.Fragment[0] == typeHelloVerifyRequest || r.Fragment[0] == typeServerHello); seen[id] && !verify {
					t.Fatalf("number %s is used twice", id)
				}
				seen[id] = true
				b = rest
			}
			return false
		}
		p.run()
		if p.client.Done() && p.server.Done() {
			done++
			p.agreed(t)
		} else if p.client.Err() != nil || p.server != nil && p.server.Err() != nil {
			t.Fatalf("seed %d: %v", seed, p.client.Err())
		}
	}
	if done < runs*99/100 {
		t.Errorf("%d of %d handshakes came through in a minute", done, runs)
	}
}

// TestEachLost: the loss of any one datagram costs one time-out at most.
func TestEachLost(t *testing.T) {
	t.Parallel()
	ck, sk := newKey(t, "P-256"), newKey(t, "P-256")
	for lost := range 6 {
		p := newPair(t, accepting(ck, sk), accepting(sk, ck))
		n := 0
		p.tap = func(bool, []byte) bool { n++; return n-1 == lost }
		p.run()
		p.agreed(t)
		want := 60 * time.Millisecond
		if lost < 6 {
			want += firstTimeout
		}
		if took := p.now.Sub(epochStart); took > want {
			t.Errorf("without datagram %d: %v", lost, took)
		}
	}
}

// TestStrangers: who is not known does not come in, and is told so; nor who has
// another key than the one it shows.
func TestStrangers(t *testing.T) {
	t.Parallel()
	ck, sk, other := newKey(t, "P-256"), newKey(t, "P-256"), newKey(t, "P-256")
	for name, c := range map[string]struct {
		client, server *Config
		alert          Alert
		remote         bool // of the client's error
	}{
		"unknown client": {accepting(ck, sk), accepting(sk, other), CertificateUnknown, true},
		"unknown server": {accepting(ck, other), accepting(sk, ck), CertificateUnknown, false},
		"foreign client key": {
			&Config{Key: &Key{signer: other.signer, spki: ck.spki, scheme: schemeES256}, Peer: accepting(ck, sk).Peer}, accepting(sk, ck), DecryptError, true,
		},
		"foreign server key": {
			accepting(ck, sk), &Config{Key: &Key{signer: other.signer, spki: sk.spki, scheme: schemeES256}, Peer: accepting(sk, ck).Peer}, DecryptError, false,
		},
		"no raw keys": {accepting(ck, sk), &Config{PSK: func([]byte) ([]byte, error) { return nil, ErrUnknown }}, HandshakeFailure, true},
		"store away":  {accepting(ck, sk), &Config{Key: sk, Peer: func([]byte) error { return errors.New("disk") }}, InternalError, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, c.client, c.server)
			p.run()
			a, ok := errors.AsType[*AlertError](p.client.Err())
			if !ok || a.Alert != c.alert || a.Remote != c.remote {
				t.Errorf("client: %v", p.client.Err())
			}
			b, ok := errors.AsType[*AlertError](p.server.Err())
			if !ok || b.Alert != c.alert || b.Remote == c.remote {
				t.Errorf("server: %v", p.server.Err())
			}
			if p.client.Done() || p.server.Done() {
				t.Error("done")
			}
		})
	}
}

// TestEveryBit: no bit of what the ends say to each other may be changed on the
// way, but what DTLS leaves open: it fails, or what was changed is lost.
func TestEveryBit(t *testing.T) {
	t.Parallel()
	ck, sk := newKey(t, "Ed25519"), newKey(t, "Ed25519")
	var sizes []int
	p := newPair(t, accepting(ck, sk), accepting(sk, ck))
	p.tap = func(_ bool, b []byte) bool { sizes = append(sizes, len(b)); return false }
	p.run()
	p.agreed(t)
	rng := mrand.New(mrand.NewPCG(5, 5))
	for range 400 {
		which := rng.IntN(len(sizes))
		at, bit := rng.IntN(sizes[which]), rng.IntN(8)
		q := newPair(t, accepting(ck, sk), accepting(sk, ck))
		n := 0
		q.tap = func(toServer bool, b []byte) bool {
			if n == which && at < len(b) {
				b[at] ^= 1 << bit
			}
			n++
			return false
		}
		q.run()
		if q.client.Done() != (q.server != nil && q.server.Done()) && q.client.Done() {
			t.Errorf("datagram %d, byte %d, bit %d: the client is done, the server is not", which, at, bit)
		}
		if q.client.Done() && q.server.Done() {
			q.agreed(t)
		}
	}
}

// TestCookies: they are for one address, one hello and a while.
func TestCookies(t *testing.T) {
	t.Parallel()
	k := newKey(t, "P-256")
	h := Connect(accepting(k, k), epochStart)
	b := h.Output()[0]
	r, _, err := record.Next(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	hello := ReadClientHello(&r)
	c := NewCookies()
	ok, answer := c.Verify(nil, hello, clientAddr, epochStart)
	if ok || len(answer) == 0 || len(answer) > len(b) {
		t.Fatalf("%v, %d bytes for %d", ok, len(answer), len(b))
	}
	if r, _, err = record.Next(answer, 0); err != nil {
		t.Fatal(err)
	}
	cookie, err := decodeVerifyRequest(r.Fragment[headerSize:])
	if err != nil {
		t.Fatal(err)
	}
	hello.Cookie = cookie
	elsewhere := netip.AddrPortFrom(clientAddr.Addr(), 1)
	changed := *hello
	changed.Random[0] ^= 1
	for name, x := range map[string]struct {
		c    *Cookies
		h    *ClientHello
		from netip.AddrPort
		at   time.Time
		want bool
	}{
		"as given":        {c, hello, clientAddr, epochStart, true},
		"a minute later":  {c, hello, clientAddr, epochStart.Add(cookieLife), true},
		"too late":        {c, hello, clientAddr, epochStart.Add(2 * cookieLife), false},
		"elsewhere":       {c, hello, elsewhere, epochStart, false},
		"another hello":   {c, &changed, clientAddr, epochStart, false},
		"another process": {NewCookies(), hello, clientAddr, epochStart, false},
	} {
		if ok, _ := x.c.Verify(nil, x.h, x.from, x.at); ok != x.want {
			t.Errorf("%s: %v", name, ok)
		}
	}
}

// TestAssembly: pieces come in any order, overlap and repeat.
func TestAssembly(t *testing.T) {
	t.Parallel()
	rng := mrand.New(mrand.NewPCG(9, 9))
	for range 2000 {
		body := make([]byte, 1+rng.IntN(60))
		for i := range body {
			body[i] = byte(i)
		}
		a := &assembly{kind: 1, body: make([]byte, len(body))}
		got := make([]bool, len(body))
		for range 200 {
			from := rng.IntN(len(body))
			to := from + rng.IntN(len(body)-from+1)
			if !a.add(&fragment{kind: 1, length: len(body), offset: from, body: body[from:to]}) {
				continue
			}
			for i := from; i < to; i++ {
				got[i] = true
			}
			if whole := !slices.Contains(got, false); a.whole() != whole {
				t.Fatalf("whole %v, pieces %v of %d", whole, a.pieces, len(body))
			}
			if a.whole() {
				break
			}
		}
		if a.whole() && !bytes.Equal(a.body, body) {
			t.Fatalf("%x", a.body)
		}
	}
}

// TestCookieOfPionV2: its second ClientHello has extensions that the first
// lacked, which RFC 6347, Section 4.2.1 does not forbid.
func TestCookieOfPionV2(t *testing.T) {
	t.Parallel()
	const random = "6b0b366f681e31d2b71cfc500c39af7fc1520baee1521bbaeb82eda5862e9b60"
	read := func(s string) *ClientHello {
		t.Helper()
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := record.Next(b, 0)
		if err != nil {
			t.Fatal(err)
		}
		h := ReadClientHello(&r)
		if h == nil {
			t.Fatal("no ClientHello")
		}
		return h
	}
	first := read("16fefd00000000000000000055010000490000000000000049fefd" + random + "0000" +
		"0002c0a80100001d000d0010000e0403050306030401050106010807ff0100010000170000")
	second := read("16fefd000000000000000100770100006b000100000000006bfefd" + random + "0010aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" +
		"0002c0a80100002f000d0010000e0403050306030401050106010807ff01000100000a00080006001d00170018000b0002010000170000")
	c := NewCookies()
	_, answer := c.Verify(nil, first, clientAddr, epochStart)
	r, _, err := record.Next(answer, 0)
	if err != nil {
		t.Fatal(err)
	}
	if second.Cookie, err = decodeVerifyRequest(r.Fragment[headerSize:]); err != nil {
		t.Fatal(err)
	}
	if ok, _ := c.Verify(nil, second, clientAddr, epochStart); !ok {
		t.Error("refused")
	}
}
