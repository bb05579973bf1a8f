package config

import "log/slog"

// Secret holds key bytes that cannot be printed.
type Secret struct{ bytes func() []byte }

func newSecret(b []byte) Secret { return Secret{func() []byte { return b }} }

// Bytes returns the bytes, nil for the zero value.
func (s Secret) Bytes() []byte {
	if s.bytes == nil {
		return nil
	}
	return s.bytes()
}

// IsZero reports whether s holds nothing.
func (s Secret) IsZero() bool { return len(s.Bytes()) == 0 }

func (s Secret) String() string       { return "[redacted]" }
func (s Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }
