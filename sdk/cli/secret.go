package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
)

// secretSink is where a new secret goes: to standard output with the rest, or
// into a file of its own.
type secretSink struct {
	name    string
	file    *os.File
	written bool
}

func (k *secretSink) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.name, "secret-file", "", "write the secret to this new file (0600) instead of printing it")
}

// open makes the file before anything is changed: a secret that cannot be kept
// had better not be made.
func (k *secretSink) open(s *session) error {
	switch {
	case k.name == "":
		return nil
	case s.dryRun:
		if _, err := os.Lstat(k.name); err == nil {
			return usage(fmt.Errorf("--secret-file: %s is there already; name a new file", k.name))
		}
		return nil
	}
	file, err := os.OpenFile(k.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usage(fmt.Errorf("--secret-file: %s is there already; name a new file", k.name))
	}
	if err != nil {
		return usage(fmt.Errorf("--secret-file: %w", err))
	}
	k.file = file
	return nil
}

// close removes a file that got no secret.
func (k *secretSink) close() {
	if k.file == nil {
		return
	}
	_ = k.file.Close()
	if !k.written {
		_ = os.Remove(k.name)
	}
}

// keep takes the secret out of an answer and into the file, if there is one.
func (k *secretSink) keep(secret **string) error {
	if k.file == nil || *secret == nil {
		return nil
	}
	text := **secret
	*secret = nil
	if _, err := k.file.WriteString(text + "\n"); err != nil {
		return err
	}
	if err := k.file.Sync(); err != nil {
		return err
	}
	k.written = true
	return nil
}

// issued is what an answer says of its secret.
type issued struct {
	secret       **string
	alreadyShown bool
	// noun is what it is for a person, and rotate the command that makes another.
	noun, rotate string
}

// handOver shows an answer with its secret, the one time that there is one, and
// says where it is.
func (s *session) handOver(k *secretSink, i issued, document any, write func(*page)) error {
	kept := k.keep(i.secret)
	err := s.show(document, func(p *page) {
		write(p)
		if *i.secret != nil {
			p.write("\n" + printable(**i.secret) + "\n")
		}
	})
	switch {
	case kept != nil:
		return &ExitError{Code: ExitUnexpected, Err: fmt.Errorf("the %s could not be written to %s and is lost: %w; make another with `%s`", i.noun, k.name, kept, i.rotate)}
	case err != nil:
		return err
	case s.dryRun:
	case *i.secret != nil:
		s.say("this is the only time that the %s is shown; keep it now", i.noun)
	case k.written:
		s.say("the %s is in %s and is not shown again", i.noun, k.name)
	case i.alreadyShown:
		return &ExitError{Code: ExitUnexpected, Err: fmt.Errorf("it is done, but the answer with the %s was lost on its way; make another with `%s`", i.noun, i.rotate)}
	}
	return nil
}
