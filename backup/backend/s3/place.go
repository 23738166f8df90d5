package s3

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Place is where the objects of a repository are.
type Place struct {
	Host   string // and port, if it is another than the scheme's
	Secure bool   // over TLS
	Bucket string
	Prefix string // empty, or ends with a slash
}

// amazon is the host of s3:// URLs.
const amazon = "s3.amazonaws.com"

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// ParsePlace reads s3://BUCKET[/PREFIX], of Amazon, or s3+https://HOST[:PORT]/BUCKET[/PREFIX], of any other. s3+http is for tests and networks that are safe otherwise.
func ParsePlace(text string) (Place, error) {
	bad := func(why string) (Place, error) {
		return Place{}, fmt.Errorf("repository %q: %s; give s3://BUCKET/PREFIX or s3+https://HOST/BUCKET/PREFIX: %w", text, why, block.ErrInvalid)
	}
	u, err := url.Parse(text)
	if err != nil {
		return Place{}, fmt.Errorf("repository: no URL: %w", block.ErrInvalid) // the text may have a secret in it
	}
	if u.User != nil {
		return Place{}, fmt.Errorf("repository: a URL with a name or password in it; give these in the environment or a file: %w", block.ErrInvalid)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.Host == "" {
		return bad("a URL without a host, or with more than host and path")
	}
	p := Place{Host: u.Host, Secure: u.Scheme != "s3+http"}
	path := strings.Trim(u.Path, "/")
	switch u.Scheme {
	case "s3":
		p.Host, p.Bucket, p.Prefix = amazon, u.Host, path
	case "s3+https", "s3+http":
		p.Bucket, p.Prefix, _ = strings.Cut(path, "/")
	default:
		return bad("not S3")
	}
	if !bucketName.MatchString(p.Bucket) {
		return bad("no name of a bucket")
	}
	if p.Prefix != "" {
		if backend.CheckKey(p.Prefix) != nil {
			return bad("a prefix has up to four parts of lower-case letters, digits, dots, dashes and underscores")
		}
		p.Prefix += "/"
	}
	return p, nil
}

// String returns the URL.
func (p Place) String() string {
	path := strings.TrimSuffix(p.Bucket+"/"+p.Prefix, "/")
	switch {
	case p.Host == amazon && p.Secure:
		return "s3://" + path
	case p.Secure:
		return "s3+https://" + p.Host + "/" + path
	}
	return "s3+http://" + p.Host + "/" + path
}
