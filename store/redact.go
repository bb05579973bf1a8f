package store

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Format prints [redacted]: the options hold the sealing key.
func (Options) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue keeps the sealing key out of logs.
func (Options) LogValue() slog.Value { return slog.StringValue(redacted) }
