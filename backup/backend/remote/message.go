package remote

import (
	"net/url"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
)

// These constants are part of the protocol and should not be changed.
const (
	// MaxObject bounds an object, bytes.
	MaxObject = access.MaxBytes
	// MaxPage bounds how many objects one answer lists.
	MaxPage = 2000
	// HashSHA256 is the value of ?hash= that asks for SHA-256.
	HashSHA256 = "sha-256"
)

// Codes of errors, which are those of hvd's other answers.
const (
	CodeUnauthenticated = "UNAUTHENTICATED"
	CodeForbidden       = "FORBIDDEN"
	CodeBusy            = "BUSY"
	CodeNoSpace         = "NO_SPACE"
	CodeInUse           = "IN_USE"
	CodeExists          = "EXISTS"
	CodeNotFound        = "NOT_FOUND"
	CodeOutOfRange      = "OUT_OF_RANGE"
	CodeCutOff          = "CUT_OFF"
	CodeInvalid         = "INVALID"
	CodeInternal        = "INTERNAL"
)

// Object is what a host says of an object.
type Object struct {
	Key       string    `json:"key"`
	SizeBytes int64     `json:"sizeBytes"`
	Created   time.Time `json:"created"` // by the clock of the host
	SHA256    string    `json:"sha256,omitempty"`
}

// Page is a part of a list of objects, in the order of the parts of their keys.
type Page struct {
	Objects []Object `json:"objects"`
	More    bool     `json:"more"` // after the last of these
}

// About is what a host says of a repository.
type About struct {
	Rights      string  `json:"rights"` // of who asks
	KeepSeconds float64 `json:"keepSeconds"`

	UsedBytes      uint64 `json:"usedBytes,omitempty"`  // of the objects in it, where it has a quota
	QuotaBytes     uint64 `json:"quotaBytes,omitempty"` // 0: none
	Peer           string `json:"peer,omitempty"`       // the name of who asks that the next two are about, where that has a quota
	PeerUsedBytes  uint64 `json:"peerUsedBytes,omitempty"`
	PeerQuotaBytes uint64 `json:"peerQuotaBytes,omitempty"`
}

// Fault is an error as hvd answers it.
type Fault struct {
	Errors []FaultError `json:"errors"`
}

// FaultError is the one error of a Fault.
type FaultError struct {
	Message    string            `json:"message"`
	Extensions map[string]string `json:"extensions"` // "code"
}

// RepositoryPath is where a repository is.
func RepositoryPath(name string) string { return "/v1/repositories/" + url.PathEscape(name) }

// ObjectPath is where an object of a repository is.
func ObjectPath(name, key string) string { return RepositoryPath(name) + "/objects/" + key }

// StatPath is where to ask about an object.
func StatPath(name, key string) string { return RepositoryPath(name) + "/stat/" + key }

// ListPath is where the objects after a key are listed whose keys begin with prefix.
func ListPath(name, prefix, after string) string {
	return RepositoryPath(name) + "/objects?" + url.Values{"prefix": {prefix}, "after": {after}}.Encode()
}

// Before reports whether one key comes before another in lists.
func Before(a, b string) bool {
	for {
		x, restA, moreA := strings.Cut(a, "/")
		y, restB, moreB := strings.Cut(b, "/")
		if x != y || !moreA || !moreB {
			return x < y || x == y && moreB && !moreA
		}
		a, b = restA, restB
	}
}
