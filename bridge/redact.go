package bridge

import (
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/cose"
)

// What holds a secret in a field prints as [redacted], and so does what holds
// that: fmt calls no methods of unexported fields.

// Format keeps passwords out of everything printed.
func (Config) Format(f fmt.State, _ rune) { cose.Redact(f) }

// Format keeps the passwords of the configuration out of everything printed.
func (*Bridge) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps them out of logs.
func (*Bridge) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// Format keeps K_m out of everything printed.
func (registration) Format(f fmt.State, _ rune) { cose.Redact(f) }

// Format keeps K_m out of everything printed.
func (ackContext) Format(f fmt.State, _ rune) { cose.Redact(f) }

// Format keeps the gateway's own credential out of everything printed.
func (*gate) Format(f fmt.State, _ rune) { cose.Redact(f) }

// Format keeps what it is made of out of everything printed.
func (*broker) Format(f fmt.State, _ rune) { cose.Redact(f) }
