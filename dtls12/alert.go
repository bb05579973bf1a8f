package dtls12

import "fmt"

// Alert is the description of an alert (RFC 5246, Section 7.2).
type Alert uint8

// The alerts that are used here.
const (
	CloseNotify            Alert = 0
	UnexpectedMessage      Alert = 10
	HandshakeFailure       Alert = 40
	BadCertificate         Alert = 42
	UnsupportedCertificate Alert = 43
	CertificateExpired     Alert = 45
	CertificateUnknown     Alert = 46
	IllegalParameter       Alert = 47
	UnknownCA              Alert = 48
	DecodeError            Alert = 50
	DecryptError           Alert = 51
	ProtocolVersion        Alert = 70
	InternalError          Alert = 80
)

const (
	levelWarning = 1
	levelFatal   = 2
)

var alertNames = map[Alert]string{
	CloseNotify: "close_notify", UnexpectedMessage: "unexpected_message", HandshakeFailure: "handshake_failure",
	BadCertificate: "bad_certificate", CertificateExpired: "certificate_expired", UnknownCA: "unknown_ca",
	UnsupportedCertificate: "unsupported_certificate", CertificateUnknown: "certificate_unknown",
	IllegalParameter: "illegal_parameter", DecodeError: "decode_error", DecryptError: "decrypt_error",
	ProtocolVersion: "protocol_version", InternalError: "internal_error",
}

func (a Alert) String() string {
	if s := alertNames[a]; s != "" {
		return s
	}
	return fmt.Sprintf("alert %d", uint8(a))
}

// AlertError is the error of a handshake that an alert ended.
type AlertError struct {
	Alert  Alert
	Remote bool // the peer sent it
	cause  error
}

func (e *AlertError) Error() string {
	if e.Remote {
		return "dtls12: the peer ended the handshake: " + e.Alert.String()
	}
	return fmt.Sprintf("dtls12: %s: %v", e.Alert, e.cause)
}

func (e *AlertError) Unwrap() error { return e.cause }
