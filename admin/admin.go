// Package admin is the operator's door: health, readiness, metrics, and the
// small HTTP API that the command line uses.
//
//	GET  /healthz               the process lives
//	GET  /readyz                every component, 503 while one is not ready
//	GET  /metrics               Prometheus
//	GET  /v1/status             version, uptime, listeners
//	GET  /v1/groups             all groups
//	GET  /v1/groups/NAME        one group with its members
//	POST /v1/groups/NAME/rekey  {"reason", "scheduled"}
//	POST /v1/rekeys             {"match", "reason", "scheduled", "after"}: many groups
//	GET  /v1/groups/NAME/delivery  how far the newest rekey has come; ?members=1: and who has it
//	GET  /v1/why/NODE           why it can or cannot read; ?group=NAME: that group
//	POST /v1/groups/NAME/evict  {"nodes", "sender_ids"}
//	POST /v1/groups/NAME/export {"move", "passphrase"}: a sealed file
//	POST /v1/imports            {"file", "passphrase"} or {"fixture"}
//	POST /v1/groups             creates a group
//	DELETE /v1/groups/NAME      deletes a group that is not active
//	POST /v1/groups/NAME/activate, POST /v1/groups/NAME/deactivate
//	POST /v1/tokens             issues an access token
//	POST /v1/tokens/revoke      ends access tokens
//	GET  /v1/audit              the audit log, a page
//	GET  /v1/nodes              enrolled nodes, a page
//	POST /v1/nodes              enrolls nodes, text/csv
//	POST /v1/nodes/WHAT         WHAT: enable, disable, remove; {"identities"}
//	GET  /v1/delegates          legacy nodes that the gateway joins for
//	POST /v1/delegates/NAME/rejoin  after an eviction
//	POST /v1/groups/NAME/trust  takes the next credential of an upstream Group Manager
//
// Everything under /v1 needs the bearer token that lies in the data folder.
// Errors are problem details (RFC 9457) with a hint where there is one. Start
// at [New]; [Client] is the other end.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Groups is what the API asks of the Group Manager.
type Groups interface {
	Groups(ctx context.Context) ([]groupcomm.GroupStatus, error)
	// Rekey renews the keying material now and returns the new version.
	Rekey(ctx context.Context, group, reason string) (uint64, error)
	// RekeyScheduled is Rekey with members told in the group's order.
	RekeyScheduled(ctx context.Context, group, reason string) (uint64, error)
	// Evict removes members by node name or Sender ID and returns the names of
	// the nodes that it removed.
	Evict(ctx context.Context, group string, nodes []string, senderIDs [][]byte) ([]string, error)
	// CreateGroup brings a group into being.
	CreateGroup(ctx context.Context, cfg groupcomm.GroupConfig) error
	// DeleteGroup removes a group that is not active, for good.
	DeleteGroup(ctx context.Context, group string) error
	// SetActive activates or deactivates a group.
	SetActive(ctx context.Context, group string, active bool) error
}

// Moves takes groups out of the gateway and into it.
type Moves interface {
	// Export seals a group, with the passphrase or else the sealing key; with
	// move it ends here.
	Export(ctx context.Context, group string, move bool, passphrase []byte) (file []byte, version uint64, err error)
	// Import takes a group from such a file.
	Import(ctx context.Context, file, passphrase []byte) (group string, version uint64, err error)
	// ImportFixture makes a new group from plain JSON.
	ImportFixture(ctx context.Context, fixture []byte) (group string, version uint64, err error)
}

// Members tells the members of a group and what each has confirmed.
type Members interface {
	MemberStatus(ctx context.Context, group string) ([]Member, error)
}

// Tokens issues and ends access tokens by hand.
type Tokens interface {
	IssueToken(ctx context.Context, req TokenRequest) (*Token, error)
	// RevokeTokens ends tokens, given as they are or as their token hashes, and
	// refuses them from now on. It returns how many of them were stored here; the
	// error is ErrNoToken when one is neither.
	RevokeTokens(ctx context.Context, list [][]byte) (ended int, err error)
}

// Readiness tells how the parts of the gateway are.
type Readiness interface {
	Components(ctx context.Context) []Component
}

// Member is one row of a group.
type Member struct {
	Node      string
	SenderID  groupcomm.SenderID // nil: none, a monitor
	Roles     groupcomm.Roles
	Version   groupcomm.Version // last confirmed
	State     string            // current, pending, asleep, unreachable, lapsed
	Channel   string            // observe, mqtt, poll, none
	OSCORE    bool              // the membership stands on a token of the OSCORE profile
	LastHeard time.Time         // zero: never
	Expires   time.Time         // of its token; zero: never
}

// TokenRequest asks for an access token.
type TokenRequest struct {
	Audience string
	Scope    groupcomm.Scope
	Lifetime time.Duration
	OSCORE   bool // of the OSCORE profile (RFC 9203), else of the DTLS profile

	PublicKey *cose.Key // of the node; nil: it gets a symmetric one
}

// Token is an issued access token. Key is the node's secret.
type Token struct {
	AccessToken []byte
	KID         []byte
	Key         []byte // nil with a public key
	Material    []byte // encoded OSCORE_Input_Material, in place of Key; nil: of the DTLS profile
	Expires     time.Time
	ServerKey   []byte // SubjectPublicKeyInfo of the gateway; nil without a public key
}

// Component is one part of the gateway in /readyz.
type Component struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Detail string `json:"detail,omitempty"` // no secrets: /readyz is open
}

// Config says how the API is served.
type Config struct {
	Token     string // bearer token; "" refuses everything under /v1
	Version   string // of the program
	Listeners map[string]string
}

// Deps are the rooms behind the API. A nil one answers 503.
type Deps struct {
	Groups  Groups
	Members Members
	Moves   Moves
	Tokens  Tokens

	Deliveries Deliveries
	Delegates  Delegates
	Identity   Identity
	Explainer  Explainer

	Nodes     Nodes
	Audit     Audit
	Readiness Readiness           // nil: always ready
	Gatherer  prometheus.Gatherer // nil: no /metrics
	Log       *slog.Logger        // nil: discard
	Liveness  Liveness
}

// Server serves the API.
type Server struct {
	cfg     Config
	deps    Deps
	token   [sha256.Size]byte
	started time.Time
	handler http.Handler
}

// Limits, our own choices. The API is for one operator and one scraper.
const (
	maxBody       = 64 << 10
	maxImport     = 96 << 20 // a file of 64 MiB in base64
	maxHeader     = 16 << 10
	maxConns      = 64
	readTimeout   = 10 * time.Second
	writeTimeout  = 60 * time.Second // a rekey is one transaction, behind others
	idleTimeout   = 60 * time.Second
	goodbye       = 3 * time.Second // for requests under way when Run ends
	scrapesAtOnce = 4
)

// New returns a server that does nothing yet.
func New(cfg Config, d Deps) *Server {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, deps: d, token: sha256.Sum256([]byte(cfg.Token)), started: time.Now()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	if d.Gatherer != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(d.Gatherer, promhttp.HandlerOpts{
			MaxRequestsInFlight: scrapesAtOnce, Timeout: readTimeout,
		}))
	}
	for pattern, h := range map[string]apiFunc{
		"GET /v1/status":               s.status,
		"GET /v1/groups":               s.listGroups,
		"GET /v1/groups/{name}":        s.showGroup,
		"POST /v1/groups/{name}/rekey": s.rekey,
		"POST /v1/rekeys":              s.rekeys,
		"POST /v1/groups/{name}/evict": s.evict,
		"POST /v1/groups":              s.createGroup,
		"DELETE /v1/groups/{name}":     s.deleteGroup,
		"POST /v1/tokens":              s.issueToken,
		"POST /v1/tokens/revoke":       s.revokeTokens,
		"GET /v1/audit":                s.auditRecords,
		"GET /v1/nodes":                s.listNodes,
		"POST /v1/nodes/enable":        s.changeNodes(Nodes.EnableNodes),
		"POST /v1/nodes/disable":       s.changeNodes(Nodes.DisableNodes),
		"POST /v1/nodes/remove":        s.changeNodes(Nodes.RemoveNodes),

		"GET /v1/groups/{name}/delivery": s.delivery,
		"GET /v1/why/{node}":             s.why,
		"GET /v1/groups/{name}/liveness": s.liveness,

		"GET /v1/identity":                 s.identity,
		"GET /v1/delegates":                s.listDelegates,
		"POST /v1/delegates/{name}/rejoin": s.rejoinDelegate,
		"POST /v1/groups/{name}/trust":     s.trustGM,

		"POST /v1/groups/{name}/activate":   s.setActive(true),
		"POST /v1/groups/{name}/deactivate": s.setActive(false),
	} {
		mux.Handle(pattern, s.authorized(h))
	}
	mux.Handle("POST /v1/nodes", s.authorizedUpTo(maxNodesBody, s.enrollNodes))
	mux.Handle("POST /v1/groups/{name}/export", s.authorized(s.export))
	mux.Handle("POST /v1/imports", s.authorizedUpTo(maxImport, s.importGroup))
	mux.Handle("/", s.authorized(func(*http.Request) (any, error) {
		return nil, &Problem{Status: http.StatusNotFound, Detail: "no such resource, or not with this method"}
	}))
	s.handler = guardHost(mux)
	return s
}

// Handler returns the API as a handler.
func (s *Server) Handler() http.Handler { return s.handler }

// Run serves on l until ctx ends, and closes l. Requests under way get a few
// seconds to finish.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.deps.Log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(limitListener(l, maxConns)) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	if err := srv.Shutdown(bye); err != nil {
		_ = srv.Close() // what did not finish in time is cut off
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tokenMatches compares in constant time, lengths included.
func (s *Server) tokenMatches(given string) bool {
	sum := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(sum[:], s.token[:]) == 1 && s.cfg.Token != ""
}
