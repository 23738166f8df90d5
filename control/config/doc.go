// Package config is hvd's configuration: one struct, from which the config file, the HV_* environment, the command-line flags, the
// defaults and the JSON Schema follow.
//
// A setting is known by its path in the file, such as log.level. Its flag is --log-level and its variable HV_LOG_LEVEL. Flags win over
// the environment, which wins over the file, which wins over the defaults. A key of the file that no field answers to is an error.
package config
