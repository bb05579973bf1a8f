package plugin

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/mux"
	"github.com/plgd-dev/go-coap/v3/net/responsewriter"
	udpclient "github.com/plgd-dev/go-coap/v3/udp/client"

	"github.com/seed4911071e/groupgate/coap"
)

// Handler wraps a host's router: requests to our paths are served here, the
// rest goes on to the host, and /.well-known/core lists both. A nil host has
// nothing of its own. It wraps rather than mounts by path, because protected
// and proxied requests have no useful Uri-Path.
func (g *Gateway) Handler(host mux.Handler) mux.Handler {
	return mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		if isReset(r.Message) {
			// go-coap passes a Reset to the handler after it told the writer
			// that the notification was acknowledged (see hostLink.acknowledged).
			if l, ok := g.known(w.Conn()); ok {
				l.reset(r.MessageID())
			}
			return
		}
		if r.Code() == codes.Empty || r.Code() >= codes.Created {
			return // an acknowledgement or a response nobody waits for
		}
		path, _ := r.Options().Path()
		segments := coap.PathOf(path)
		switch {
		case g.forwards(r.Options(), segments):
			g.serve(w, r)
		case host != nil && (r.HasOption(message.ProxyURI) || r.HasOption(message.ProxyScheme)):
			host.ServeCOAP(w, r) // the path is one of another server
		case r.HasOption(optionOSCORE):
			g.serve(w, r) // the path is inside
		case discovery(segments) && host != nil:
			g.mergeDiscovery(host, w, r)
		case ours(segments), g.forGroup(segments), host == nil:
			g.serve(w, r)
		default:
			host.ServeCOAP(w, r)
		}
	})
}

// optionOSCORE is the OSCORE option (RFC 8613, Section 2), which go-coap does not
// know.
const optionOSCORE = message.OptionID(coap.OSCOREOption)

// Carries says whether the peer of a connection is reached there with OSCORE. A
// host that ends connections over plain UDP when they are idle asks it: notifications
// could not reach the peer any more.
func (g *Gateway) Carries(conn *udpclient.Conn) bool {
	l, known := g.known(conn)
	return known && g.carries(l.id)
}

// carries says whether the peer of a link is reached there with OSCORE.
func (g *Gateway) carries(id coap.LinkID) bool {
	r := g.rooms.Load()
	return r != nil && r.secure.Uses(id)
}

// Monitor is a go-coap request monitor (options.WithRequestMonitor). With it
// the gateway sees a Reset before go-coap reports the notification as
// acknowledged, so that a confirmation needs no wait. A host without it works
// too.
func (g *Gateway) Monitor(conn *udpclient.Conn, m *pool.Message) (drop bool, err error) {
	if l, ok := g.known(conn); ok {
		l.monitored.Store(true)
		if m.Type() == message.Reset {
			l.reset(m.MessageID())
		}
	}
	return false, nil
}

// Connected is a go-coap callback for new connections (options.WithOnNewConn),
// for servers over DTLS. With it the gateway learns at the end of the handshake
// whose key that was, instead of at the first request: a key identifier that
// was given out anew in between would name somebody else, and associations
// that never ask for anything would not be counted. A host without it works
// too.
func (g *Gateway) Connected(conn *udpclient.Conn) {
	release, ok := g.gate.enter()
	if !ok {
		return
	}
	defer release()
	ctx, cancel := g.requestContext(conn.Context())
	defer cancel()
	link, err := g.link(ctx, conn)
	if err != nil {
		// The first request tries again and is told.
		g.log.DebugContext(ctx, "association not known yet", "peer", conn.RemoteAddr(), "err", err)
		return
	}
	g.forgetClosed(conn, link)
}

// connKey is the identity of a connection in the table of links.
func connKey(c mux.Conn) any { return c }

// serve hands one request to the server core and its reply to go-coap.
func (g *Gateway) serve(w mux.ResponseWriter, r *mux.Message) {
	release, ok := g.gate.enter()
	if !ok {
		w.Message().SetCode(codes.ServiceUnavailable)
		w.Message().SetModified(true)
		return
	}
	defer release()
	ctx, cancel := g.requestContext(w.Conn().Context())
	defer cancel()
	link, err := g.link(ctx, w.Conn())
	if err == nil {
		defer g.forgetClosed(w.Conn(), link)
	}
	if err != nil {
		g.log.WarnContext(ctx, "association refused", "peer", w.Conn().RemoteAddr(), "err", err)
		fillError(w, coap.ErrorResponse(g.diskFull(ctx, err)))
		return
	}
	m, err := fromPool(r.Message)
	if err != nil {
		fillError(w, coap.ErrorResponse(coap.Errorf(coap.BadRequest, "the body could not be read")))
		return
	}
	answered := link.hold(m.Token) // lets go what must come after the answer
	reply := g.server.Handle(ctx, link, m)
	if reply != nil {
		fill(w.Message(), reply)
	}
	if reply == nil || !responsewriter.AfterWrite(r.Context(), answered) {
		answered()
	}
}

func fillError(w mux.ResponseWriter, resp *coap.Response) {
	fill(w.Message(), &coap.Message{Code: resp.Code, Options: resp.Options, Payload: resp.Payload})
}

// linkEntry is the place of a connection's link, which its first request makes.
type linkEntry struct {
	once sync.Once
	err  error                    // set by once
	link atomic.Pointer[hostLink] // set by once
}

// known returns the link of a connection that was heard before. It never
// waits: go-coap's reader calls it.
func (g *Gateway) known(conn mux.Conn) (*hostLink, bool) {
	v, ok := g.links.Load(connKey(conn))
	if !ok {
		return nil, false
	}
	l := v.(*linkEntry).link.Load()
	return l, l != nil
}

// link returns the one link of a connection, made at its first request. Each
// connection waits for itself only: a token that came in psk_identity is
// committed here.
func (g *Gateway) link(ctx context.Context, conn mux.Conn) (*hostLink, error) {
	key := connKey(conn)
	v, ok := g.links.Load(key)
	if !ok {
		v, _ = g.links.LoadOrStore(key, &linkEntry{})
	}
	e := v.(*linkEntry)
	e.once.Do(func() {
		var l *hostLink
		if l, e.err = g.newLink(ctx, conn); e.err == nil {
			e.link.Store(l)
		}
	})
	if e.err != nil {
		g.links.CompareAndDelete(key, e) // the next request tries again
		return nil, e.err
	}
	return e.link.Load(), nil
}

func (g *Gateway) newLink(ctx context.Context, conn mux.Conn) (*hostLink, error) {
	l := newHostLink(conn, !g.ownBlockwise, g.server.Cancel, &g.awaited)
	err := l.secure(func(identity []byte, exporter func(string, []byte, int) ([]byte, error)) (coap.Subject, error) {
		return g.subject(ctx, identity, exporter)
	})
	if err != nil {
		return nil, err
	}
	conn.AddOnClose(func() { g.forget(conn, l) })
	if old := g.crowd.enter(l); old != nil {
		g.log.DebugContext(ctx, "oldest association of a key closed for a newer", "peer", conn.RemoteAddr())
		old.end()
	}
	return l, nil
}

// subject says who finished a handshake with a pre-shared key.
func (g *Gateway) subject(ctx context.Context, identity []byte, exporter func(string, []byte, int) ([]byte, error)) (coap.Subject, error) {
	r := g.rooms.Load()
	if r == nil {
		return coap.Subject{}, errStarting
	}
	g.tries.finished(identity)
	subject, conveyed := r.access.Subject(identity)
	if !conveyed {
		return subject, nil
	}
	// The client's Finished was verified: only now is the token committed (RFC
	// 9202, Section 3.3.2).
	subject, err := r.access.Conveyed(ctx, identity, exporter)
	if err != nil && coap.Deliberate(err) && coap.ErrorResponse(err).Code < coap.InternalServerError {
		// No token, or none that is accepted: the handshake was with the host's
		// own key. Such a peer has no rights here, and is told where to get some.
		return coap.Subject{}, nil
	}
	return subject, err
}

// forget ends what there is of a connection that was closed.
func (g *Gateway) forget(conn mux.Conn, l *hostLink) {
	g.links.Delete(connKey(conn))
	g.crowd.leave(l)
	g.server.Closed(l.id)
}

// forgetClosed forgets a connection that was closed while it was worked for:
// go-coap had told so before there was anything to forget, and tells it once.
func (g *Gateway) forgetClosed(conn mux.Conn, l *hostLink) {
	if conn.Context().Err() != nil {
		g.forget(conn, l)
	}
}

// mergeDiscovery serves /.well-known/core with the host's links and ours.
func (g *Gateway) mergeDiscovery(host mux.Handler, w mux.ResponseWriter, r *mux.Message) {
	m, err := fromPool(r.Message)
	if err != nil {
		fillError(w, coap.ErrorResponse(coap.Errorf(coap.BadRequest, "the body could not be read")))
		return
	}
	host.ServeCOAP(w, r)
	rooms := g.rooms.Load()
	if rooms == nil || m.Code != coap.GET {
		return
	}
	var theirs []byte
	switch w.Message().Code() {
	case codes.Content:
		if theirs, err = w.Message().ReadBody(); err != nil {
			return
		}
	case codes.NotFound, codes.Empty:
	default:
		return // the host has its reasons
	}
	ctx, cancel := g.requestContext(w.Conn().Context())
	defer cancel()
	resp, err := g.wellKnown(ctx, rooms, &coap.Request{Code: m.Code, Options: m.Options})
	if err != nil {
		g.log.ErrorContext(ctx, "links for discovery", "err", err)
		return
	}
	merged := bytes.Join(slicesOf(theirs, resp.Payload), []byte{','})
	resp.Payload = merged
	fillError(w, resp)
}

// slicesOf returns its non-empty arguments.
func slicesOf(parts ...[]byte) [][]byte {
	var out [][]byte
	for _, p := range parts {
		if len(p) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// gate counts running requests, so that Run returns only when they are over:
// go-coap's Serve does not wait for its handlers.
type gate struct {
	mu     sync.Mutex
	wg     sync.WaitGroup
	closed bool // guarded by mu
}

// enter admits a request; release must be called when it is over.
func (g *gate) enter() (release func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false
	}
	g.wg.Add(1)
	return g.wg.Done, true
}

// close turns late requests away and waits for the running ones.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
