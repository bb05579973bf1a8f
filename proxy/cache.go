package proxy

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// cacheKey names a response: what was asked where, and with whose authority.
// resourceKey names a resource, whoever asks.
type (
	cacheKey    [16]byte
	resourceKey [16]byte
)

// keyOf is the cache key of a request (RFC 7252, Section 5.6): the method and all
// options but those that are no part of it by their number, those that the proxy
// interprets itself, and Hop-Limit, which says nothing about the response; of a
// FETCH the payload as well (RFC 8132, Section 2.1). authority is whatever else
// the response depends on (docs/protocol.md, Section 8).
func keyOf(authority string, method coap.Code, o coap.Options, payload []byte) cacheKey {
	b := make([]byte, 0, 256)
	b = binary.BigEndian.AppendUint16(b, uint16(len(authority)))
	b = append(b, authority...)
	b = append(b, byte(method))
	for _, x := range o {
		switch x.ID {
		case coap.ETag, coap.ObserveOption, coap.Block1, coap.Block2, coap.HopLimit, coap.NoResponse, coap.MaxAge, coap.RequestTag:
			continue
		}
		if x.ID.NoCacheKey() {
			continue
		}
		b = binary.BigEndian.AppendUint16(b, uint16(x.ID))
		b = binary.BigEndian.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, x.Value...)
	}
	if method == coap.FETCH {
		b = append(b, 0xff, 0xff)
		b = append(b, payload...)
	}
	sum := sha256.Sum256(b)
	return cacheKey(sum[:16])
}

// resourceOf is the key of the resource that a request is about: its URI.
func resourceOf(place string, o coap.Options) resourceKey {
	b := append(make([]byte, 0, 128), place...)
	for _, x := range o {
		if x.ID == coap.UriPath || x.ID == coap.UriQuery || x.ID == coap.UriHost {
			b = append(b, 0, byte(x.ID), byte(len(x.Value)))
			b = append(b, x.Value...)
		}
	}
	sum := sha256.Sum256(b)
	return resourceKey(sum[:16])
}

// cache holds responses in bounded memory: the least recently used go.
type cache struct {
	max   int
	count func(result string)

	mu   sync.Mutex
	used int
	m    map[cacheKey]*list.Element // of *entry
	lru  list.List                  // newest first
	of   map[resourceKey][]*entry
}

type entry struct {
	key      cacheKey
	resource resourceKey
	resp     *coap.Response // without Max-Age; never changed
	etag     []byte
	until    time.Time // fresh before
	size     int
}

func newCache(limit int) *cache {
	return &cache{max: limit, count: func(string) {}, m: map[cacheKey]*list.Element{}, of: map[resourceKey][]*entry{}}
}

func (c *cache) bytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// get returns what is stored, and whether it is fresh.
func (c *cache) get(k cacheKey, now time.Time) (e entry, fresh, found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.m[k]
	if el == nil {
		return e, false, false
	}
	c.lru.MoveToFront(el)
	e = *el.Value.(*entry)
	return e, now.Before(e.until), true
}

// cacheable says for how long a response may serve again; 0: not at all. Only
// responses to GET and FETCH are kept, of the successful ones 2.05 (RFC 7252,
// Section 5.9.1), and errors but for those that are part of a conversation: who
// the client is (4.01, and what has an Echo option), and transfers in blocks.
func cacheable(r *coap.Response) time.Duration {
	switch {
	case r.Code == coap.Content:
	case r.Code.IsSuccess(), r.Code == coap.Unauthorized, r.Code == coap.RequestEntityIncomplete, r.Code == coap.HopLimitReached:
		return 0
	}
	if r.Options.Has(coap.Echo) || r.Options.Has(coap.OSCOREOption) {
		return 0
	}
	return maxAgeOf(r)
}

func maxAgeOf(r *coap.Response) time.Duration {
	if v, ok := r.Options.Uint(coap.MaxAge); ok {
		return time.Duration(v) * time.Second
	}
	return defaultMaxAge
}

// put stores a response for as long as it says.
func (c *cache) put(k cacheKey, res resourceKey, r *coap.Response, now time.Time) {
	ttl := cacheable(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.m[k]; el != nil {
		c.removeLocked(el)
	}
	etag, _ := r.Options.Get(coap.ETag)
	if ttl == 0 && (etag == nil || r.Code != coap.Content || r.Options.Has(coap.Echo)) {
		return // it could not even be validated
	}
	e := &entry{key: k, resource: res, etag: etag, until: now.Add(ttl), size: entryOverhead + len(r.Payload)}
	e.resp = &coap.Response{Code: r.Code, Options: without(r.Options, coap.MaxAge, coap.ObserveOption), Payload: r.Payload}
	for _, o := range e.resp.Options {
		e.size += len(o.Value) + 32
	}
	if e.size > c.max/4 {
		return
	}
	for c.used+e.size > c.max {
		c.removeLocked(c.lru.Back())
		c.count("evicted")
	}
	c.m[k] = c.lru.PushFront(e)
	c.of[res] = append(c.of[res], e)
	c.used += e.size
	c.count("stored")
}

// validated makes an entry fresh again as a 2.03 says (RFC 7252, Section 5.9.1.3:
// its options take the place of those that were stored), and returns the whole
// response. false: there is no such representation any more.
func (c *cache) validated(k cacheKey, valid *coap.Response, now time.Time) (*coap.Response, bool) {
	tag, _ := valid.Options.Get(coap.ETag)
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.m[k]
	if el == nil {
		return nil, false
	}
	e := el.Value.(*entry)
	if e.etag == nil || tag != nil && !bytes.Equal(tag, e.etag) {
		return nil, false
	}
	e.until = now.Add(maxAgeOf(valid))
	opts := slices.Clone(e.resp.Options)
	for _, o := range valid.Options {
		if o.ID != coap.MaxAge && o.ID != coap.ETag {
			opts.Remove(o.ID)
		}
	}
	for _, o := range valid.Options {
		if o.ID != coap.MaxAge && o.ID != coap.ETag {
			opts.Add(o.ID, o.Value)
		}
	}
	e.resp = &coap.Response{Code: e.resp.Code, Options: opts, Payload: e.resp.Payload}
	out := *e.resp
	setMaxAge(&out, maxAgeOf(valid))
	return &out, true
}

// invalidate marks what is stored of a resource as not fresh: something changed
// it (RFC 7252, Section 5.9.1.1 and following).
func (c *cache) invalidate(res resourceKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.of[res] {
		e.until = time.Time{}
		c.count("invalidated")
	}
}

func (c *cache) removeLocked(el *list.Element) {
	e := el.Value.(*entry)
	c.lru.Remove(el)
	delete(c.m, e.key)
	c.used -= e.size
	list := c.of[e.resource]
	if i := slices.Index(list, e); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(c.of, e.resource)
	} else {
		c.of[e.resource] = list
	}
}

// setMaxAge says how much longer a response is fresh, in whole seconds.
func setMaxAge(r *coap.Response, left time.Duration) {
	r.Options.SetUint(coap.MaxAge, uint32(min(max(left, 0)/time.Second, 1<<32-1)))
}

// serve makes the response to a request out of a representation (RFC 7252,
// Section 5.6.2: 2.03 where the client has it already).
func represent(r *coap.Response, o coap.Options) *coap.Response {
	tag, ok := r.Options.Get(coap.ETag)
	if !ok || r.Code != coap.Content || !slices.ContainsFunc(o.Values(coap.ETag), func(have []byte) bool { return bytes.Equal(have, tag) }) {
		return r
	}
	out := &coap.Response{Code: coap.Valid}
	out.Options.Add(coap.ETag, tag)
	if v, ok := r.Options.Get(coap.MaxAge); ok {
		out.Options.Add(coap.MaxAge, v)
	}
	return out
}
