package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	keystile "github.com/supportstation/keystile/sdk"
)

// maxSecretFile bounds what is read for one secret, in bytes.
const maxSecretFile = 8 << 10

// Config is what the commands take from their surroundings.
type Config struct {
	// LookupEnv finds KEYSTILE_URL, KEYSTILE_TOKEN and their like. Default:
	// [os.LookupEnv].
	LookupEnv func(name string) (string, bool)
}

// value returns name's value, or the content of the file that name_FILE says;
// "" when neither is set.
func (c Config) value(name string) (string, error) {
	lookup := c.LookupEnv
	if lookup == nil {
		lookup = os.LookupEnv
	}
	value, set := lookup(name)
	file, fromFile := lookup(name + "_FILE")
	switch {
	case set && fromFile:
		return "", usage(fmt.Errorf("%s and %s_FILE are both set; unset one", name, name))
	case !fromFile:
		return value, nil
	}
	content, err := readSecretFile(file)
	if err != nil {
		return "", usage(fmt.Errorf("%s_FILE: %w", name, err))
	}
	return content, nil
}

func readSecretFile(name string) (string, error) {
	file, err := os.Open(name) //nolint:gosec // the operator names the file
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	return readSecret(file)
}

// readSecret takes one line end off: editors and echo put it there.
func readSecret(r io.Reader) (string, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxSecretFile+1))
	if err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	if len(content) > maxSecretFile {
		return "", fmt.Errorf("it is longer than %d bytes; it should hold the secret alone", maxSecretFile)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r"), nil
}

// client connects to url, or to KEYSTILE_URL, as the caller of KEYSTILE_TOKEN.
func (c Config) client(url string) (*keystile.Client, error) {
	if url == "" {
		var err error
		if url, err = c.value("KEYSTILE_URL"); err != nil {
			return nil, err
		}
	}
	if url == "" {
		return nil, usage(errors.New("no service is named; set KEYSTILE_URL or --url, such as http://127.0.0.1:8080"))
	}
	token, err := c.value("KEYSTILE_TOKEN")
	if err != nil {
		return nil, err
	}
	if token == "" {
		return nil, usage(errors.New("no caller token; set KEYSTILE_TOKEN (ksc_…), or KEYSTILE_TOKEN_FILE"))
	}
	plaintext, err := c.value("KEYSTILE_INSECURE_PLAINTEXT")
	if err != nil {
		return nil, err
	}
	var opts []keystile.Option
	if plaintext == "true" {
		opts = append(opts, keystile.WithInsecurePlaintext())
	}
	client, err := keystile.New(url, token, opts...)
	if err != nil {
		return nil, usage(err)
	}
	return client, nil
}

// presentedKey reads the key from file ("-": stdin), or from KEYSTILE_KEY. An
// empty one asks what a client without a key would be told.
func (c Config) presentedKey(file string, stdin io.Reader) (string, error) {
	var key string
	var err error
	switch file {
	case "":
		if key, err = c.value("KEYSTILE_KEY"); err != nil {
			return "", err
		}
		if key == "" {
			return "", usage(errors.New("no key to check; give --key-file FILE, --key-file - for standard input, or set KEYSTILE_KEY"))
		}
		return key, nil
	case "-":
		key, err = readSecret(stdin)
	default:
		key, err = readSecretFile(file)
	}
	if err != nil {
		return "", usage(fmt.Errorf("--key-file: %w", err))
	}
	return key, nil
}
