package groupcomm

import (
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/cose"
)

// Types that hold group secrets, tokens or passwords print as [redacted] under
// every verb and in logs. The methods are on values so that pointers have them
// too. fmt does not call methods on unexported fields: a type that holds one of
// these in such a field redacts itself or holds a cose.Secret.

// Format prints [redacted] under every verb.
func (KeyMap) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the keys out of logs.
func (KeyMap) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the keys out of JSON and YAML.
func (KeyMap) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (KeyDistribution) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the keys out of logs.
func (KeyDistribution) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the keys out of JSON and YAML.
func (KeyDistribution) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (RekeyMessage) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the keys out of logs.
func (RekeyMessage) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the keys out of JSON and YAML.
func (RekeyMessage) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (VerifData) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the key out of logs.
func (VerifData) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the key out of JSON and YAML.
func (VerifData) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (MgtKeyMaterial) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the keys out of logs.
func (MgtKeyMaterial) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the keys out of JSON and YAML.
func (MgtKeyMaterial) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (RekeyPlan) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the rekey message out of logs.
func (RekeyPlan) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the rekey message out of JSON and YAML.
func (RekeyPlan) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (TokenTransfer) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the token out of logs.
func (TokenTransfer) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the token out of JSON and YAML.
func (TokenTransfer) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (LegacyKey) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the keys out of logs.
func (LegacyKey) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the keys out of JSON and YAML.
func (LegacyKey) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }

// Format prints [redacted] under every verb.
func (LegacyKeyDistribution) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the keys out of logs.
func (LegacyKeyDistribution) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// MarshalText keeps the keys out of JSON and YAML.
func (LegacyKeyDistribution) MarshalText() ([]byte, error) { return []byte(cose.Redacted), nil }
