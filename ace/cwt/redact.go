package cwt

import (
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/cose"
)

// Format prints [redacted]: it holds the key of an issuer.
func (Protection) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the key out of logs.
func (Protection) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }
