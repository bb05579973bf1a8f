package admin

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// apiFunc answers one request with a value that becomes JSON.
type apiFunc func(r *http.Request) (any, error)

// authorized asks for the bearer token (RFC 6750, Section 2.1) and turns what f
// returns into the response.
func (s *Server) authorized(f apiFunc) http.Handler { return s.authorizedUpTo(maxBody, f) }

// authorizedUpTo is authorized for bodies of up to limit bytes.
func (s *Server) authorizedUpTo(limit int64, f apiFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") || !s.tokenMatches(token) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="groupgate"`)
			writeProblem(w, &Problem{Status: http.StatusUnauthorized, Detail: "the admin token is missing or wrong",
				Hint: "it lies in admin.token in the gateway's data folder"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		v, err := f(r)
		if err != nil {
			p := problemOf(err)
			if p.Status >= 500 {
				s.deps.Log.WarnContext(r.Context(), "admin request failed", "path", r.URL.Path, "err", err)
			}
			writeProblem(w, p)
			return
		}
		writeJSON(w, http.StatusOK, "application/json", v)
	})
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ok"})
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	list, status := []Component{}, http.StatusOK
	if s.deps.Readiness != nil {
		list = append(list, s.deps.Readiness.Components(r.Context())...)
	}
	ready := true
	for _, c := range list {
		ready = ready && c.Ready
	}
	if !ready {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, "application/json", struct {
		Ready      bool        `json:"ready"`
		Components []Component `json:"components"`
	}{ready, list})
}

// StatusInfo is the answer of /v1/status.
type StatusInfo struct {
	Version   string            `json:"version"`
	Started   time.Time         `json:"started"`
	Listeners map[string]string `json:"listeners"`
}

func (s *Server) status(*http.Request) (any, error) {
	return StatusInfo{s.cfg.Version, s.started.UTC().Truncate(time.Second), s.cfg.Listeners}, nil
}

// GroupInfo is one group as the API shows it. Members are missing in the list
// of all groups, which has their number.
type GroupInfo struct {
	Name        string       `json:"name"`
	Gid         string       `json:"gid"` // hex
	Version     uint64       `json:"version"`
	Active      bool         `json:"active"`
	Expires     *time.Time   `json:"expires,omitempty"` // of the keying material
	MemberCount *int         `json:"member_count,omitempty"`
	RekeyDue    bool         `json:"rekey_due,omitempty"`
	Members     []MemberInfo `json:"members,omitzero"`
}

// MemberInfo is one member as the API shows it (docs/protocol.md, Section 11).
type MemberInfo struct {
	Node      string     `json:"node"`
	SenderID  *string    `json:"sender_id"` // hex; null: none
	Roles     []string   `json:"roles"`
	Version   uint64     `json:"version"` // last confirmed
	State     string     `json:"state"`   // current, pending, asleep, unreachable, lapsed
	Channel   string     `json:"channel"`
	Via       string     `json:"via,omitempty"` // oscore: by a token of the OSCORE profile; absent: of the DTLS profile
	LastHeard *time.Time `json:"last_heard"`    // null: never
	Expires   *time.Time `json:"expires"`       // null: never
}

func (s *Server) listGroups(r *http.Request) (any, error) {
	groups, err := s.groups(r)
	if err != nil {
		return nil, err
	}
	list := make([]GroupInfo, len(groups))
	for i, g := range groups {
		list[i] = groupInfo(g)
		list[i].Expires = timeOrNil(g.Exp)
		list[i].MemberCount = &groups[i].Members
		list[i].RekeyDue = g.Due
	}
	return list, nil
}

func (s *Server) groups(r *http.Request) ([]groupcomm.GroupStatus, error) {
	if s.deps.Groups == nil {
		return nil, errNotServed
	}
	return s.deps.Groups.Groups(r.Context())
}

var errNotServed = &Problem{Status: http.StatusServiceUnavailable, Detail: "this gateway does not serve that"}

// showGroup answers exactly the members of docs/protocol.md, Section 11.
func (s *Server) showGroup(r *http.Request) (any, error) { return s.group(r, r.PathValue("name")) }

func (s *Server) group(r *http.Request, name string) (any, error) {
	groups, err := s.groups(r)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if g.Name != name {
			continue
		}
		info := groupInfo(g)
		info.Members = []MemberInfo{}
		if s.deps.Members == nil {
			return info, nil
		}
		members, err := s.deps.Members.MemberStatus(r.Context(), name)
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			info.Members = append(info.Members, memberInfo(m))
		}
		return info, nil
	}
	return nil, &Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("this gateway manages no group %q", name),
		Hint: "`gateway group list` shows the groups; of one with another Group Manager (gm) `gateway delegate list` tells"}
}

func groupInfo(g groupcomm.GroupStatus) GroupInfo {
	return GroupInfo{Name: g.Name, Gid: g.Gid.String(), Version: g.Version, Active: g.Active}
}

func memberInfo(m Member) MemberInfo {
	info := MemberInfo{
		Node: m.Node, Roles: roleNames(m.Roles), Version: m.Version, State: m.State, Channel: m.Channel,
		LastHeard: timeOrNil(m.LastHeard), Expires: timeOrNil(m.Expires),
	}
	if m.SenderID != nil {
		id := m.SenderID.String()
		info.SenderID = &id
	}
	if m.OSCORE {
		info.Via = "oscore"
	}
	return info
}

func roleNames(r groupcomm.Roles) []string {
	if r == 0 {
		return []string{}
	}
	return strings.Split(r.String(), ",")
}

func timeOrNil(t time.Time) *time.Time { return truncated(t, time.Second) }

func truncated(t time.Time, to time.Duration) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(to)
	return &t
}

// RekeyResult is the answer to a rekey.
type RekeyResult struct {
	Group   string `json:"group"`
	Version uint64 `json:"version"`
}

func (s *Server) rekey(r *http.Request) (any, error) {
	var req struct {
		Reason    string `json:"reason"`
		Scheduled bool   `json:"scheduled"`
	}
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	if len(req.Reason) > maxReason {
		return nil, badRequest("reason is longer than %d bytes", maxReason)
	}
	if s.deps.Groups == nil {
		return nil, errNotServed
	}
	name := r.PathValue("name")
	rekey := s.deps.Groups.Rekey
	if req.Scheduled {
		rekey = s.deps.Groups.RekeyScheduled
	}
	version, err := rekey(r.Context(), name, req.Reason)
	if err != nil {
		return nil, err
	}
	return RekeyResult{name, version}, nil
}

// Bounds of what one request may name.
const (
	maxReason = 200
	maxEvict  = 1000
	maxRevoke = 1000
)

// EvictResult is the answer to an eviction.
type EvictResult struct {
	Group   string   `json:"group"`
	Evicted []string `json:"evicted"` // node names
}

func (s *Server) evict(r *http.Request) (any, error) {
	var req struct {
		Nodes     []string `json:"nodes"`
		SenderIDs []string `json:"sender_ids"`
	}
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	if n := len(req.Nodes) + len(req.SenderIDs); n == 0 || n > maxEvict {
		return nil, badRequest("name 1 to %d members by nodes or sender_ids", maxEvict)
	}
	ids := make([][]byte, len(req.SenderIDs))
	for i, text := range req.SenderIDs {
		id, err := hex.DecodeString(text)
		if err != nil {
			return nil, badRequest("sender_ids[%d] is not hexadecimal", i)
		}
		ids[i] = id
	}
	if s.deps.Groups == nil {
		return nil, errNotServed
	}
	name := r.PathValue("name")
	evicted, err := s.deps.Groups.Evict(r.Context(), name, req.Nodes, ids)
	if err != nil {
		return nil, err
	}
	return EvictResult{name, append([]string{}, evicted...)}, nil
}

// TokenAsk is the body of POST /v1/tokens.
type TokenAsk struct {
	Audience string       `json:"audience"`
	Scope    []ScopeEntry `json:"scope"`
	Lifetime string       `json:"lifetime"` // Go duration, a second at least
	// PublicKey has the token confirm a public key of the node's, in place of a
	// symmetric one that is made for it: a SubjectPublicKeyInfo (DER) in hex.
	PublicKey string `json:"public_key,omitempty"`
	// Profile is coap_dtls or coap_oscore; "": the former.
	Profile string `json:"profile,omitempty"`
}

// ScopeEntry is one group and the roles in it.
type ScopeEntry struct {
	Group string   `json:"group"`
	Roles []string `json:"roles"`
}

// TokenInfo is an issued token. Key and Material are secret: who has them is the node.
type TokenInfo struct {
	AccessToken string     `json:"access_token"` // hex
	KID         string     `json:"kid"`          // hex
	Key         string     `json:"key"`          // hex; "" with a public key or Material
	Expires     *time.Time `json:"expires"`
	// ServerKey is what the gateway shows to a node with a public key: a
	// SubjectPublicKeyInfo (DER) in hex.
	ServerKey string `json:"server_key,omitempty"`
	// Material is the OSCORE_Input_Material (RFC 9203, Section 3.2.1), CBOR in hex, of a
	// token of the OSCORE profile; its id is KID.
	Material string `json:"osc_material,omitempty"`
}

func (s *Server) issueToken(r *http.Request) (any, error) {
	var ask TokenAsk
	if err := readJSON(r, &ask); err != nil {
		return nil, err
	}
	req := TokenRequest{Audience: ask.Audience}
	for _, e := range ask.Scope {
		bits, err := groupcomm.ParseRoles(strings.Join(e.Roles, ","))
		if err != nil {
			return nil, badRequest("scope: %s", err)
		}
		if !groupcomm.ValidGroupName(e.Group) {
			return nil, badRequest("scope: %q is no group name", e.Group)
		}
		req.Scope = append(req.Scope, groupcomm.ScopeEntry{Group: e.Group, Roles: bits})
	}
	if len(req.Scope) == 0 {
		return nil, badRequest("scope is empty")
	}
	var err error
	if req.Lifetime, err = time.ParseDuration(ask.Lifetime); err != nil || req.Lifetime < time.Second {
		return nil, badRequest("lifetime must be a duration such as 24h")
	}
	if ask.PublicKey != "" {
		der, err := hex.DecodeString(ask.PublicKey)
		if err == nil {
			req.PublicKey, err = cose.KeyFromSPKI(der)
		}
		if err != nil || req.PublicKey.CheckAlg(cose.AlgES256) != nil && req.PublicKey.CheckAlg(cose.AlgEdDSA) != nil {
			return nil, badRequest("public_key is no SubjectPublicKeyInfo of P-256 or Ed25519 in hexadecimal")
		}
	}
	switch ask.Profile {
	case "", "coap_dtls":
	case "coap_oscore":
		if req.OSCORE = true; req.PublicKey != nil {
			return nil, badRequest("public_key goes with profile coap_dtls")
		}
	default:
		return nil, badRequest("profile must be coap_dtls or coap_oscore")
	}
	if s.deps.Tokens == nil {
		return nil, errNotServed
	}
	t, err := s.deps.Tokens.IssueToken(r.Context(), req)
	if err != nil {
		return nil, err
	}
	return TokenInfo{
		AccessToken: hex.EncodeToString(t.AccessToken), KID: hex.EncodeToString(t.KID), Key: hex.EncodeToString(t.Key),
		Expires: timeOrNil(t.Expires), ServerKey: hex.EncodeToString(t.ServerKey),
		Material: hex.EncodeToString(t.Material),
	}, nil
}

// RevokeAsk is the body of POST /v1/tokens/revoke.
type RevokeAsk struct {
	Tokens []string `json:"tokens"` // hex: a token, or its token hash of 33 bytes
}

// RevokeResult is the answer to it.
type RevokeResult struct {
	Revoked int `json:"revoked"` // all that were named: none of them is taken any more
	Ended   int `json:"ended"`   // those that were stored here
}

// ErrNoToken is the error of bytes that are no token.
var ErrNoToken = errors.New("neither an access token nor a token hash")

// revokeTokens ends tokens (RFC 9770, Section 4 has the hash). Members that they
// admitted are evicted, and their groups rekeyed.
func (s *Server) revokeTokens(r *http.Request) (any, error) {
	var ask RevokeAsk
	if err := readJSON(r, &ask); err != nil {
		return nil, err
	}
	if len(ask.Tokens) == 0 || len(ask.Tokens) > maxRevoke {
		return nil, badRequest("name 1 to %d tokens", maxRevoke)
	}
	list := make([][]byte, len(ask.Tokens))
	for i, t := range ask.Tokens {
		b, err := hex.DecodeString(t)
		if err != nil || len(b) == 0 {
			return nil, badRequest("tokens[%d] is not hex", i)
		}
		list[i] = b
	}
	if s.deps.Tokens == nil {
		return nil, errNotServed
	}
	n, err := s.deps.Tokens.RevokeTokens(r.Context(), list)
	if errors.Is(err, ErrNoToken) {
		return nil, &Problem{Status: http.StatusBadRequest, Detail: err.Error(), Hint: "nothing is revoked"}
	}
	if err != nil {
		return nil, err
	}
	return RevokeResult{len(list), n}, nil
}

func badRequest(format string, args ...any) error {
	return &Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf(format, args...)}
}

// readJSON reads one bounded JSON object: no unknown members, nothing after it.
func readJSON(r *http.Request, v any) error {
	// A type that HTML forms cannot send.
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		return &Problem{Status: http.StatusUnsupportedMediaType, Detail: "the body must be application/json"}
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		} else if err == nil {
			err = errors.New("more follows the object")
		}
	}
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &Problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", tooLong.Limit)}
	}
	return badRequest("the body is not the JSON object expected: %s", err)
}
