package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxUncovered bounds an object that is stored once more to uncover it, bytes: none of a repository is longer.
const maxUncovered = 256 << 20

// maxVersions bounds what is kept of a listing: a folder of packs has a 256th of them.
const maxVersions = 1 << 18

// versionsOf returns all versions of each object under prefix, the youngest first, though marks that one is deleted may come before or behind those that are none.
func (s *S3) versionsOf(ctx context.Context, prefix string) (all map[string][]minio.ObjectInfo, err error) {
	err = s.try(ctx, "list the versions of objects in "+s.Location(), func() error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the goroutine of the listing
		all = make(map[string][]minio.ObjectInfo)
		count := 0
		for info := range s.client.ListObjects(ctx, s.o.Place.Bucket, minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, WithVersions: true}) {
			if info.Err != nil {
				return info.Err
			}
			if count++; count > maxVersions {
				return fmt.Errorf("more than %d versions of objects whose keys begin with %q: remove what is not of the repository: %w", maxVersions, s.key(prefix), block.ErrInvalid)
			}
			if key, ours := strings.CutPrefix(info.Key, s.o.Prefix); ours && backend.CheckKey(key) == nil {
				all[key] = append(all[key], info)
			}
		}
		return ctx.Err()
	})
	return all, err
}

// deleteVersions removes all versions of an object, the oldest first: where one is locked, what is read stays what it was.
func (s *S3) deleteVersions(ctx context.Context, key string) error {
	all, err := s.versionsOf(ctx, key)
	if err != nil {
		return err
	}
	for _, v := range slices.Backward(all[key]) {
		if err := s.deleteVersion(ctx, key, v.VersionID); err != nil {
			return err
		}
	}
	return nil
}

func (s *S3) deleteVersion(ctx context.Context, key, version string) error {
	err := s.try(ctx, "delete object "+key, func() error {
		err := s.client.RemoveObject(ctx, s.o.Place.Bucket, s.key(key), minio.RemoveObjectOptions{VersionID: version})
		if answerCode(err) == minio.NoSuchVersion {
			return nil // an earlier try, or somebody else
		}
		return err
	})
	if errors.Is(err, block.ErrNotFound) {
		return nil
	}
	return s.refused(ctx, key, version, err)
}

// Hidden implements backend.Locker. An object has one version, as none is ever replaced: so the oldest one that is locked is the right one, and what else there is came from somebody who could not delete it.
func (s *S3) Hidden(ctx context.Context, prefix string, visit func(backend.Hidden) error) error {
	all, err := s.versionsOf(ctx, prefix)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		h, err := s.hidden(ctx, key, all[key])
		if err != nil {
			return err
		}
		if h == nil {
			continue
		}
		if err := visit(*h); err != nil {
			return err
		}
	}
	return nil
}

// hidden returns the version of an object that is locked and not what is read, nil if there is none.
func (s *S3) hidden(ctx context.Context, key string, versions []minio.ObjectInfo) (*backend.Hidden, error) {
	latest := slices.IndexFunc(versions, func(v minio.ObjectInfo) bool { return v.IsLatest })
	for i := len(versions) - 1; i >= 0; i-- {
		v := &versions[i]
		if v.IsDeleteMarker {
			continue
		}
		if i == latest {
			return nil, nil // what is older is locked no more
		}
		until, err := s.versionLock(ctx, key, v.VersionID)
		if errors.Is(err, block.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !until.After(time.Now()) {
			continue
		}
		deleted := latest < 0 || versions[latest].IsDeleteMarker
		if !deleted && v.Size == versions[latest].Size && v.ETag == versions[latest].ETag {
			return nil, nil // it was uncovered before
		}
		o, err := object(key, *v)
		if err != nil {
			return nil, err
		}
		return &backend.Hidden{Object: o, Version: v.VersionID, LockedUntil: until, Deleted: deleted}, nil
	}
	return nil, nil
}

// Uncover implements backend.Locker.
func (s *S3) Uncover(ctx context.Context, h backend.Hidden) error {
	all, err := s.versionsOf(ctx, h.Key)
	if err != nil {
		return err
	}
	versions := all[h.Key]
	if !slices.ContainsFunc(versions, func(v minio.ObjectInfo) bool { return v.VersionID == h.Version }) {
		return fmt.Errorf("version %s of object %s: %w", h.Version, h.Key, block.ErrNotFound)
	}
	for _, v := range versions {
		if v.VersionID == h.Version {
			continue
		}
		var locked *backend.LockedError
		if err := s.deleteVersion(ctx, h.Key, v.VersionID); err != nil && !errors.As(err, &locked) {
			return err
		}
	}
	_, read, err := s.stat(ctx, h.Key)
	if err != nil || read == h.Version {
		return err
	}
	return s.storeAgain(ctx, h)
}

// storeAgain stores the bytes of a version under its key once more.
func (s *S3) storeAgain(ctx context.Context, h backend.Hidden) error {
	if h.SizeBytes > maxUncovered {
		return fmt.Errorf("object %s of %d B is longer than any of a repository: %w", h.Key, h.SizeBytes, block.ErrInvalid)
	}
	data := make([]byte, h.SizeBytes)
	err := s.try(ctx, "read a version of object "+h.Key, func() error {
		body, _, _, err := minio.Core{Client: s.client}.GetObject(ctx, s.o.Place.Bucket, s.key(h.Key), minio.GetObjectOptions{VersionID: h.Version})
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.ReadFull(body, data)
		return err
	})
	if err != nil {
		return err
	}
	err = s.try(ctx, "store object "+h.Key+" again", func() error {
		o := minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true, ContentType: "application/octet-stream", Mode: lockMode, RetainUntilDate: h.LockedUntil}
		_, err := s.client.PutObject(ctx, s.o.Place.Bucket, s.key(h.Key), bytes.NewReader(data), int64(len(data)), o)
		return err
	})
	return err
}
