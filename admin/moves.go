package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/seed4911071e/groupgate/cose"
)

// maxPassphrase bounds a passphrase.
const maxPassphrase = 1024

// ExportAsk is the body of POST /v1/groups/NAME/export.
type ExportAsk struct {
	Move       bool   `json:"move"`                 // the group ends here
	Passphrase string `json:"passphrase,omitempty"` // "": the sealing key of the gateway
}

// ExportResult is an exported group. File is sealed.
type ExportResult struct {
	Group   string `json:"group"`
	Version uint64 `json:"version"`
	File    []byte `json:"file"` // base64
}

// ImportAsk is the body of POST /v1/imports: a file of an export, or a fixture.
type ImportAsk struct {
	File       []byte          `json:"file,omitempty"` // base64
	Passphrase string          `json:"passphrase,omitempty"`
	Fixture    json.RawMessage `json:"fixture,omitempty"`
}

// ImportResult is the answer to an import.
type ImportResult struct {
	Group   string `json:"group"`
	Version uint64 `json:"version"`
}

func (s *Server) export(r *http.Request) (any, error) {
	var ask ExportAsk
	if err := readJSON(r, &ask); err != nil {
		return nil, err
	}
	if len(ask.Passphrase) > maxPassphrase {
		return nil, badRequest("passphrase is longer than %d bytes", maxPassphrase)
	}
	if s.deps.Moves == nil {
		return nil, errNotServed
	}
	name := r.PathValue("name")
	file, version, err := s.deps.Moves.Export(r.Context(), name, ask.Move, []byte(ask.Passphrase))
	if err != nil {
		return nil, err
	}
	return ExportResult{name, version, file}, nil
}

func (s *Server) importGroup(r *http.Request) (any, error) {
	var ask ImportAsk
	if err := readJSON(r, &ask); err != nil {
		return nil, err
	}
	if (ask.File == nil) == (ask.Fixture == nil) || ask.Fixture != nil && ask.Passphrase != "" || len(ask.Passphrase) > maxPassphrase {
		return nil, badRequest("give a file, perhaps with its passphrase, or a fixture")
	}
	if s.deps.Moves == nil {
		return nil, errNotServed
	}
	var out ImportResult
	var err error
	if ask.Fixture != nil {
		out.Group, out.Version, err = s.deps.Moves.ImportFixture(r.Context(), ask.Fixture)
	} else {
		out.Group, out.Version, err = s.deps.Moves.Import(r.Context(), ask.File, []byte(ask.Passphrase))
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Export seals a group.
func (c *Client) Export(ctx context.Context, group string, ask ExportAsk) (*ExportResult, error) {
	return call[ExportResult](ctx, c, http.MethodPost, "/v1/groups/"+url.PathEscape(group)+"/export", ask)
}

// Import takes a group into the gateway.
func (c *Client) Import(ctx context.Context, ask ImportAsk) (*ImportResult, error) {
	return call[ImportResult](ctx, c, http.MethodPost, "/v1/imports", ask)
}

// Format prints [redacted]: it holds the passphrase.
func (ExportAsk) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the passphrase out of logs.
func (ExportAsk) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// Format prints [redacted]: it holds the passphrase, and a fixture holds keys.
func (ImportAsk) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps passphrase and keys out of logs.
func (ImportAsk) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }
