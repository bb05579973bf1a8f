package cose

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what every secret prints.
const Redacted = "[redacted]"

// Secret holds secret bytes behind a closure, so that not even a formatter that
// walks unexported fields by reflection finds them. The zero value holds none.
type Secret struct {
	bytes func() []byte
}

// NewSecret keeps a copy of b. A Secret of an empty b is not zero.
func NewSecret(b []byte) Secret {
	c := append([]byte{}, b...)
	return Secret{bytes: func() []byte { return c }}
}

// Bytes returns a copy of the secret, nil when there is none.
func (s Secret) Bytes() []byte {
	if s.bytes == nil {
		return nil
	}
	return append([]byte{}, s.bytes()...)
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.bytes == nil }

// Equal compares in constant time. Two zero secrets are not equal: nothing is
// known.
func (s Secret) Equal(other Secret) bool {
	if s.bytes == nil || other.bytes == nil {
		return false
	}
	return subtle.ConstantTimeCompare(s.bytes(), other.bytes()) == 1
}

// Format prints [redacted] under every verb.
func (Secret) Format(f fmt.State, _ rune) { Redact(f) }

// LogValue keeps the secret out of logs.
func (Secret) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText keeps the secret out of JSON and YAML.
func (Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// Redact writes [Redacted]. It is the body of the Format method of every type
// that holds a secret.
func Redact(w io.Writer) { _, _ = io.WriteString(w, Redacted) }
