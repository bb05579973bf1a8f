package ace

import (
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/cose"
)

// Format prints [redacted]: a verified token holds its key of proof.
func (verified) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the key out of logs.
func (verified) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }
