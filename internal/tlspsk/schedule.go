package tlspsk

import (
	"crypto/hmac"
	"crypto/sha256"
)

// The key schedule (RFC 8446, 7.1) with SHA-256. Every secret in it is one hash long.
type secret = [hashSize]byte

// extract is HKDF-Extract.
func extract(salt secret, input []byte) secret { return mac(salt[:], input) }

// expandLabel is HKDF-Expand-Label. Nothing here is longer than one hash, so HKDF-Expand is one HMAC.
func expandLabel(from secret, label string, context []byte, length int) []byte {
	const prefix = "tls13 "
	info := be.AppendUint16(nil, uint16(length))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, byte(len(context)))
	info = append(info, context...)
	block := mac(from[:], append(info, 1))
	return block[:length]
}

// derive is Derive-Secret of messages that hash to transcript.
func derive(from secret, label string, transcript secret) secret {
	return secret(expandLabel(from, label, transcript[:], hashSize))
}

// next is the salt of the stage of the schedule that follows.
func next(from secret) secret { return derive(from, "derived", sha256.Sum256(nil)) }

// earlySecret is the first stage.
func earlySecret(key []byte) secret { return extract(secret{}, key) }

// binderKey is what an external key is proved with. That of a resumed session has another label, so neither passes for the other.
func binderKey(early secret) secret { return derive(early, "ext binder", sha256.Sum256(nil)) }

// verifyData is the content of Finished, and a binder.
func verifyData(base, transcript secret) secret {
	return mac(expandLabel(base, "finished", nil, hashSize), transcript[:])
}

func mac(key, message []byte) (sum secret) {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	h.Sum(sum[:0])
	return sum
}
