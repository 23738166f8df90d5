package s3

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// FindCredentials returns what is in the environment, or in a profile of a file as the tools of Amazon use it. A file that others may read is refused (fs.ErrPermission).
func FindCredentials(getenv func(string) string) (*credentials.Credentials, error) {
	id, secret := getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY")
	if id != "" && secret != "" {
		return credentials.NewStaticV4(id, secret, getenv("AWS_SESSION_TOKEN")), nil
	}
	path := getenv("AWS_SHARED_CREDENTIALS_FILE")
	if path == "" {
		path = filepath.Join(getenv("HOME"), ".aws", "credentials")
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE: %w: %w", block.ErrInvalid, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("credentials file %s may be read by others, make its mode 0600: %w", path, fs.ErrPermission)
	}
	c := credentials.NewFileAWSCredentials(path, getenv("AWS_PROFILE"))
	if _, err := c.GetWithContext(nil); err != nil {
		return nil, fmt.Errorf("no credentials in %s, or not of profile %q: %w", path, getenv("AWS_PROFILE"), block.ErrInvalid) // the error may show a part of one
	}
	return c, nil
}
