package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/node"
)

// outbound is the association of the gateway with a CoAP server elsewhere,
// opened at first use and anew when it is lost. Its methods may be used from
// many goroutines.
type outbound struct {
	secure   bool
	addr     string // host:port
	name     string // goes into Uri-Host; "": none
	identity []byte
	key      cose.Secret

	slot chan node.Transport // holds the transport, nil while there is none
}

// outboundTimeout bounds a request whose context has no deadline, the
// handshake included.
const outboundTimeout = 15 * time.Second

// newOutbound makes the association for a URI and returns the segments of its
// path. It does no I/O.
func newOutbound(uri, identity string, key cose.Secret) (*outbound, []string, error) {
	secure, addr, name, path, err := splitURI(uri)
	if err != nil {
		return nil, nil, fmt.Errorf("plugin: %w", err)
	}
	o := &outbound{secure: secure, addr: addr, name: name, identity: []byte(identity), key: key, slot: make(chan node.Transport, 1)}
	o.slot <- nil
	return o, path, nil
}

// Do sends a request and waits for its response. Requests have to be such that
// it does no harm to send them twice: an association of before may be one that
// the server has forgotten, which only its silence tells.
func (o *outbound) Do(ctx context.Context, req *coap.Request) (resp *coap.Response, err error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	err = o.with(ctx, func(ctx context.Context, t node.Transport) error {
		resp, err = t.Do(ctx, o.named(req))
		return err
	})
	return resp, err
}

// Observe registers for a resource (RFC 7641). fn is called for the first
// response, before Observe returns, and for every later one. done is closed
// when the association has ended, and the registration with it.
func (o *outbound) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (cancel func(context.Context) error, done <-chan struct{}, err error) {
	ctx, free := withTimeout(ctx)
	defer free()
	err = o.with(ctx, func(ctx context.Context, t node.Transport) error {
		if d, ok := t.(node.Doner); ok {
			done = d.Done()
		}
		cancel, err = t.Observe(ctx, o.named(req), fn)
		return err
	})
	return cancel, done, err
}

// Close ends the association; the next request opens another.
func (o *outbound) Close() error {
	t := <-o.slot
	o.slot <- nil
	if t == nil {
		return nil
	}
	return t.Close()
}

// with calls f with the transport. One that was there already gets half of the
// time; when that is lost, a new one gets the rest.
func (o *outbound) with(ctx context.Context, f func(context.Context, node.Transport) error) error {
	t, fresh, err := o.transport(ctx)
	if err != nil {
		return err
	}
	if !fresh {
		half, cancel := halfOf(ctx)
		err = f(half, t)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		o.drop(t)
		if t, _, err = o.transport(ctx); err != nil {
			return err
		}
	}
	if err = f(ctx, t); err != nil && !errors.Is(err, context.Canceled) {
		o.drop(t)
	}
	return err
}

// transport returns the open transport, or opens one.
func (o *outbound) transport(ctx context.Context) (t node.Transport, fresh bool, err error) {
	select {
	case t = <-o.slot:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	defer func() { o.slot <- t }()
	if t != nil {
		d, ok := t.(node.Doner)
		if !ok {
			return t, false, nil
		}
		select {
		case <-d.Done():
			_ = t.Close()
			t = nil
		default:
			return t, false, nil
		}
	}
	var opened node.Transport
	if o.secure {
		opened, err = node.DialDTLS(ctx, o.addr, o.identity, o.key.Bytes())
	} else {
		opened, err = node.DialUDP(ctx, o.addr)
	}
	if err != nil {
		return nil, false, err
	}
	t = opened
	return t, true, nil
}

// drop closes a transport that is of no use, unless somebody did already.
func (o *outbound) drop(t node.Transport) {
	now := <-o.slot
	if now == t {
		now = nil
	}
	o.slot <- now
	_ = t.Close()
}

// named is the request with Uri-Host, where the server was named by a host
// name (RFC 7252, Section 6.4).
func (o *outbound) named(req *coap.Request) *coap.Request {
	if o.name == "" {
		return req
	}
	req = req.Clone()
	req.Options.Set(coap.UriHost, []byte(o.name))
	return req
}

func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, outboundTimeout)
}

func halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	end, _ := ctx.Deadline()
	return context.WithTimeout(ctx, time.Until(end)/2)
}

// splitURI reads coap(s)://host[:port][/path] as an address, the segments of
// its path and the host to be named, "" when that is an IP address.
func splitURI(uri string) (secure bool, addr, name string, path []string, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return false, "", "", nil, err
	}
	port := u.Port()
	if secure = u.Scheme == "coaps"; port == "" {
		port = "5683"
		if secure {
			port = "5684"
		}
	}
	path = coap.PathOf(u.EscapedPath())
	for i := range path {
		if path[i], err = url.PathUnescape(path[i]); err != nil {
			return false, "", "", nil, err
		}
	}
	return secure, net.JoinHostPort(u.Hostname(), port), hostName(u.Hostname()), path, nil
}

// hostName is a host that is no IP address.
func hostName(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}
