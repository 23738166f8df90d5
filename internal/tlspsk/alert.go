package tlspsk

import "fmt"

// alert is an AlertDescription (RFC 8446, 6).
type alert uint8

// The alerts that are sent, or told by name.
const (
	alertCloseNotify       alert = 0
	alertUnexpectedMessage alert = 10
	alertBadRecordMAC      alert = 20
	alertRecordOverflow    alert = 22
	alertHandshakeFailure  alert = 40
	alertIllegalParameter  alert = 47
	alertDecodeError       alert = 50
	alertDecryptError      alert = 51
	alertProtocolVersion   alert = 70
	alertInternalError     alert = 80
	alertUserCanceled      alert = 90
	alertMissingExtension  alert = 109
)

var alertNames = map[alert]string{
	alertCloseNotify: "close_notify", alertUnexpectedMessage: "unexpected_message", alertBadRecordMAC: "bad_record_mac", alertRecordOverflow: "record_overflow",
	alertHandshakeFailure: "handshake_failure", alertIllegalParameter: "illegal_parameter", alertDecodeError: "decode_error", alertDecryptError: "decrypt_error",
	alertProtocolVersion: "protocol_version", alertInternalError: "internal_error", alertUserCanceled: "user_canceled", alertMissingExtension: "missing_extension",
}

func (a alert) String() string {
	if name := alertNames[a]; name != "" {
		return name
	}
	return fmt.Sprintf("alert %d", uint8(a))
}

// level is what an alert's first byte says, which nobody may rely on.
func (a alert) level() byte {
	if a == alertCloseNotify {
		return 1
	}
	return 2
}

// failure is why this side ends a connection, and the alert that tells the other.
type failure struct {
	alert alert
	why   string
}

func (f *failure) Error() string { return "tlspsk: " + f.why + " (" + f.alert.String() + ")" }

// failed returns a *failure.
func failed(a alert, format string, args ...any) error {
	return &failure{alert: a, why: fmt.Sprintf(format, args...)}
}

// AlertError is what a connection ends with that the peer gave up.
type AlertError uint8

func (e AlertError) Error() string { return "tlspsk: the peer ended it: " + alert(e).String() }
