package admin

import (
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/cose"
)

// Format prints [redacted]: the key in it is a node's secret.
func (Token) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the key out of logs.
func (Token) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// Format prints [redacted]: the key in it is a node's secret.
func (TokenInfo) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the key out of logs.
func (TokenInfo) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// Format prints [redacted]: it holds the bearer token.
func (Config) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the bearer token out of logs.
func (Config) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// Format prints [redacted]: its configuration holds the bearer token.
func (*Server) Format(f fmt.State, _ rune) { cose.Redact(f) }

// Format prints [redacted]: it holds the bearer token.
func (*Client) Format(f fmt.State, _ rune) { cose.Redact(f) }
