package peer

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"

	piondtls "github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/datagram"
	"github.com/seed4911071e/groupgate/record"
)

// floor is what no server can do without: it moves the datagrams in batches and
// opens and seals their records, and nothing else. It knows no copies, repeats
// nothing, checks no replay, asks no handler and has no limits; the keys of all
// nodes stay expanded. pion does the handshakes, which are not measured.
type floor struct {
	conn *datagram.Conn
	wg   sync.WaitGroup

	shakes map[netip.AddrPort]*datagram.Pipe // of the reader only

	wmu      sync.Mutex // guards writing
	mu       sync.Mutex // guards what follows
	sessions []*floorSession
}

// floorSession is a node. Its connection ID is its place in the table, and one.
type floorSession struct {
	addr   netip.AddrPort
	in     *record.Cipher // of the reader
	peer   []byte         // its connection ID
	out    *record.Cipher // guarded by mu, as what follows
	mu     sync.Mutex
	seq    uint64
	id     uint16
	number uint16
	token  []byte // of its observation; nil: none
}

// Sizes of what the floor reads and writes, in bytes.
const (
	floorCID  = 8
	floorRoom = 2048
)

// epoch of every session.
const epoch = 1

func newFloor() (Server, error) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	f := &floor{conn: datagram.New(c), shakes: map[netip.AddrPort]*datagram.Pipe{}}
	f.wg.Go(f.run) // ends with the socket
	return f, nil
}

func (f *floor) Addr() netip.AddrPort { return f.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func (f *floor) Close() {
	_ = f.conn.Close()
	f.wg.Wait()
}

// run reads until the socket is closed.
func (f *floor) run() {
	defer func() {
		for _, p := range f.shakes {
			_ = p.Close()
		}
	}()
	ds := make([]datagram.Datagram, datagram.Batch)
	room := make([]byte, floorRoom*len(ds))
	b := newFloorBatch()
	var m coap.Message
	plain := make([]byte, 0, floorRoom)
	for {
		for i := range ds {
			ds[i] = datagram.Datagram{B: room[i*floorRoom : (i+1)*floorRoom]}
		}
		n, err := f.conn.Read(ds)
		if err != nil {
			return // nothing else ends it on loopback
		}
		for _, d := range ds[:n] {
			r, _, err := record.Next(d.B, floorCID)
			if err != nil {
				continue
			}
			s := f.session(&r)
			if s == nil {
				f.shake(d)
				continue
			}
			_, content, err := s.in.Open(plain[:0], &r)
			if err != nil || m.Decode(content) != nil || !m.Code.IsRequest() {
				continue
			}
			f.answer(s, &m, b)
		}
		f.send(b)
	}
}

// session is whose record it is; nil: of nobody yet.
func (f *floor) session(r *record.Record) *floorSession {
	if r.Type != record.ConnectionID {
		return nil
	}
	i := binary.BigEndian.Uint64(r.CID) - 1
	f.mu.Lock()
	defer f.mu.Unlock()
	if i >= uint64(len(f.sessions)) {
		return nil
	}
	return f.sessions[i]
}

// shake gives a datagram to the handshake at its address.
func (f *floor) shake(d datagram.Datagram) {
	p := f.shakes[d.Addr]
	if p == nil {
		to := net.UDPAddrFromAddrPort(d.Addr)
		p = datagram.NewPipe(f.conn.LocalAddr(), to, func(b []byte) {
			f.wmu.Lock()
			defer f.wmu.Unlock()
			_, _ = f.conn.Write([]datagram.Datagram{{Addr: d.Addr, B: b}}) // the client repeats itself
		})
		f.shakes[d.Addr] = p
		f.wg.Go(func() { f.handshake(p, d.Addr) })
	}
	p.Deliver(d.B)
}

func (f *floor) handshake(p *datagram.Pipe, from netip.AddrPort) {
	f.mu.Lock()
	f.sessions = append(f.sessions, nil)
	place := len(f.sessions) - 1
	f.mu.Unlock()
	conn, err := piondtls.ServerWithOptions(p, p.Peer(),
		piondtls.WithPSK(func([]byte) ([]byte, error) { return Key, nil }),
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		piondtls.WithExtendedMasterSecret(piondtls.RequireExtendedMasterSecret),
		piondtls.WithConnectionIDGenerator(func() []byte { return binary.BigEndian.AppendUint64(nil, uint64(place)+1) }),
		piondtls.WithLoggerFactory(datagram.Quiet{}),
	)
	if err != nil {
		return
	}
	defer func() {
		_ = conn.Close() // nobody hears it
		_ = p.Close()
	}()
	// Until the first request shows that the client has our last flight pion is the
	// one to repeat it.
	first := make([]byte, floorRoom)
	n := 0
	if err = conn.HandshakeContext(context.Background()); err == nil { // ends with the pipe
		n, err = conn.Read(first)
	}
	p.Mute()
	st, ok := conn.ConnectionState()
	if err != nil || !ok {
		return
	}
	raw, err := st.MarshalBinary()
	if err != nil {
		return
	}
	s := newFloorSession(raw, from)
	m, err := coap.DecodeMessage(first[:n])
	if s == nil || err != nil {
		return
	}
	f.mu.Lock()
	f.sessions[place] = s
	f.mu.Unlock()
	b := newFloorBatch()
	f.answer(s, m, b)
	f.send(b)
}

// newFloorSession makes a session of the state of a finished handshake; nil: it
// has none.
func newFloorSession(raw []byte, from netip.AddrPort) *floorSession {
	x, err := record.ParseState(raw)
	if err != nil {
		return nil
	}
	suite, read, write, err := x.Keys()
	if err != nil {
		return nil
	}
	s := &floorSession{addr: from, peer: x.RemoteConnectionID, seq: x.SequenceNumber}
	if s.in, err = record.NewCipher(suite, &read); err != nil {
		return nil
	}
	if s.out, err = record.NewCipher(suite, &write); err != nil {
		return nil
	}
	return s
}

// answer appends the response to a request.
func (f *floor) answer(s *floorSession, m *coap.Message, b *floorBatch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.msg = append(b.msg[:0], 1<<6|byte(coap.Acknowledgement)<<4|byte(len(m.Token)), byte(coap.Changed), byte(m.ID>>8), byte(m.ID))
	b.msg = append(b.msg, m.Token...)
	body := m.Payload
	if m.Code == coap.GET {
		b.msg[1], body = byte(coap.Content), []byte("state")
		if m.Options.Has(coap.ObserveOption) {
			s.token = append([]byte(nil), m.Token...)
			b.msg = append(b.msg, byte(coap.ObserveOption)<<4|1, 1)
		}
	}
	b.msg = append(append(b.msg, 0xff), body...)
	b.seal(s)
}

// Publish seals one notification after the other.
func (f *floor) Publish(confirm bool, size int) {
	f.mu.Lock()
	all := append([]*floorSession(nil), f.sessions...)
	f.mu.Unlock()
	kind := coap.NonConfirmable
	if confirm {
		kind = coap.Confirmable
	}
	body := make([]byte, size)
	b := newFloorBatch()
	for _, s := range all {
		if s == nil {
			continue
		}
		s.mu.Lock()
		if s.token != nil {
			s.id++
			s.number++
			b.msg = append(b.msg[:0], 1<<6|byte(kind)<<4|byte(len(s.token)), byte(coap.Content), byte(s.id>>8), byte(s.id))
			b.msg = append(b.msg, s.token...)
			b.msg = append(b.msg, byte(coap.ObserveOption)<<4|3, 1, byte(s.number>>8), byte(s.number), 0xff)
			b.msg = append(b.msg, body...)
			b.seal(s)
		}
		s.mu.Unlock()
		if len(b.ds) == cap(b.ds) {
			f.send(b)
		}
	}
	f.send(b)
}

// floorBatch is what is sent with one system call.
type floorBatch struct {
	ds   []datagram.Datagram
	room []byte
	msg  []byte
}

func newFloorBatch() *floorBatch {
	return &floorBatch{ds: make([]datagram.Datagram, 0, datagram.Batch), room: make([]byte, floorRoom*datagram.Batch)}
}

// seal adds the record with msg.
func (b *floorBatch) seal(s *floorSession) {
	at := len(b.ds) * floorRoom
	b.ds = append(b.ds, datagram.Datagram{Addr: s.addr, B: s.out.Seal(b.room[at:at:at+floorRoom], record.ApplicationData, epoch, s.seq, s.peer, b.msg)})
	s.seq++
}

func (f *floor) send(b *floorBatch) {
	f.wmu.Lock()
	defer f.wmu.Unlock()
	for rest := b.ds; len(rest) > 0; {
		n, err := f.conn.Write(rest)
		if err != nil {
			n = 1 // that one is lost
		}
		rest = rest[max(n, 1):]
	}
	b.ds = b.ds[:0]
}
