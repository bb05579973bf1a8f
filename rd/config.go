package rd

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
)

// Config says how the gateway appears in the directory.
type Config struct {
	// Path is the registration resource; nil: it is asked for by its resource
	// type, core.rd (RFC 9176, Section 4.3).
	Path []string
	// Endpoint and Sector name the registration: 'ep', at most 63 bytes, and
	// 'd', "" for none. Together they are unique in the directory.
	Endpoint, Sector string
	// Base is what the targets of the links are relative to, for example
	// "coaps://gm.example.com". The directory would otherwise take the address
	// that requests come from, where nobody listens.
	Base string
	// Lifetime is 'lt', whole seconds. Zero: 25 h, the directory's own default.
	Lifetime time.Duration
}

// Client carries requests to the directory.
type Client interface {
	// Do returns the response, whatever its code; an error says that none came.
	Do(ctx context.Context, req *coap.Request) (*coap.Response, error)
}

// Deps are the collaborators of a Registrar.
type Deps struct {
	Client Client
	// Links says what is to be registered now: targets that begin with a slash
	// or are whole URIs, and the same of anchors. It is asked often, so it
	// must be cheap.
	Links      func(ctx context.Context) []coap.WebLink
	Log        *slog.Logger          // nil: discard
	Registerer prometheus.Registerer // nil: metrics are kept to ourselves
}

// From RFC 9176.
const (
	defaultLifetime = 90000 * time.Second // Section 5
	maxAnswer       = 64 << 10            // bytes of an answer to a look for core.rd, our choice
)

// Our choices.
const (
	lookEvery      = 5 * time.Second // for links that changed
	requestTimeout = 15 * time.Second
	firstBackoff   = 5 * time.Second
	longestBackoff = 5 * time.Minute
	goodbye        = 2 * time.Second // for the removal when the gateway stops
)

func (c Config) withDefaults() Config {
	if c.Lifetime <= 0 {
		c.Lifetime = defaultLifetime
	}
	return c
}
