// Package s3test runs an S3 server for tests, versitygw with its posix backend, built from the module in testdata, and a proxy before it that answers wrongly when a test says so.
package s3test
