package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A replica that ends while Postgres is away keeps what it has counted in a file, and the next
// one that starts with the same folder writes it. Each batch has its id, so that none is
// written twice, whoever takes it and however often.

const (
	// spillEnding is of a file that is whole, takenEnding of one that somebody is writing.
	spillEnding = ".usage.json"
	takenEnding = ".taken"
	// maxSpill bounds what is read of such a file: more than the buffer of counts has.
	maxSpill = 256 << 20
)

// spilledBatch is a batch as it is kept: what writeUsageSQL takes.
type spilledBatch struct {
	ID        string   `json:"id"`
	Decisions int64    `json:"decisions"`
	Tables    []string `json:"tables"`
}

// spilled is a file of them. Peppers are the fingerprints of those under which it was counted:
// another database is none of its business.
type spilled struct {
	Peppers []string       `json:"peppers"`
	Batches []spilledBatch `json:"batches"`
}

// spillUsage keeps what waits in a file, and tells how many decisions those are; path is "" when
// nothing waits.
func (s *Store) spillUsage() (path string, decisions int64, err error) {
	s.usageWriting.Lock()
	defer s.usageWriting.Unlock()
	if s.spillDir == "" || !s.admitted.Load() {
		return "", 0, errors.New("there is no folder to keep it in, see KEYSTILE_STATE_DIR")
	}
	batches := slices.Concat(s.usageBatches, batchesOf(s.usage.take(math.MaxInt64)))
	if len(batches) == 0 {
		return "", 0, nil
	}
	file := spilled{Peppers: s.pepperMarks()}
	for _, batch := range batches {
		tables, err := usageTablesOf(batch)
		if err != nil {
			return "", 0, err
		}
		file.Batches = append(file.Batches, spilledBatch{batch.id, batch.n, tables})
		decisions += batch.n
	}
	raw, err := json.Marshal(file)
	if err == nil {
		err = os.MkdirAll(s.spillDir, 0o700)
	}
	path = filepath.Join(s.spillDir, s.replica.id+spillEnding)
	if err == nil {
		err = writeWhole(path, raw)
	}
	if err != nil {
		return "", 0, fmt.Errorf("keep usage in %s: %w", path, err)
	}
	s.usageBatches = nil
	return path, decisions, nil
}

// writeWhole has a file be there with all of it, or not at all.
func writeWhole(path string, raw []byte) error {
	half, err := os.CreateTemp(filepath.Dir(path), ".half-*")
	if err != nil {
		return err
	}
	_, err = half.Write(raw)
	if err == nil {
		err = half.Sync()
	}
	if err = errors.Join(err, half.Close()); err == nil {
		err = os.Rename(half.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(half.Name()))
	}
	return nil
}

func (s *Store) pepperMarks() []string {
	var marks []string
	for _, id := range s.peppers.IDs() {
		if mark, ok := s.peppers.Fingerprint(id); ok {
			marks = append(marks, id+":"+mark)
		}
	}
	return marks
}

// recoverUsage writes what replicas before have kept. A file that cannot be written yet is
// tried again at the next call; one that never can be stays, and is told once.
func (s *Store) recoverUsage(ctx context.Context) error {
	if s.spillDir == "" || s.spillRead {
		return nil
	}
	entries, err := os.ReadDir(s.spillDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("usage that was kept cannot be looked for", slog.Any("error", err))
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() || !strings.HasSuffix(strings.TrimSuffix(name, takenEnding), spillEnding) {
			continue
		}
		if err := s.recoverFrom(ctx, filepath.Join(s.spillDir, name)); err != nil {
			return err
		}
	}
	s.spillRead = true
	return nil
}

// recoverFrom returns an error of a Postgres that is away alone.
func (s *Store) recoverFrom(ctx context.Context, path string) error {
	file, err := s.readSpilled(path)
	if err == nil && !strings.HasSuffix(path, takenEnding) {
		// What cannot be taken away afterwards would be written again, some day.
		if err = os.Rename(path, path+takenEnding); errors.Is(err, fs.ErrNotExist) {
			return nil // another replica is at it
		}
		path += takenEnding
	}
	if err != nil {
		s.log.Error("usage that was kept is not written", slog.String("file", path), slog.Any("error", err))
		return nil
	}
	decisions := int64(0)
	for _, batch := range file.Batches {
		err := s.writeTables(ctx, batch.ID, batch.Tables)
		switch {
		case isBadData(err):
			s.log.Error("Postgres does not take usage that was kept; it is lost", slog.Int64("decisions", batch.Decisions), slog.Any("error", translate("write usage", err)))
			continue
		case err != nil:
			return translate("write usage", err)
		}
		decisions += batch.Decisions
	}
	s.log.Info("usage that was kept while Postgres was away is written", slog.Int64("decisions", decisions), slog.String("file", path))
	return os.Remove(path) //nolint:wrapcheck // flushUsage's caller tells
}

func (s *Store) readSpilled(path string) (*spilled, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSpill {
		return nil, errors.New("it is too large")
	}
	raw, err := os.ReadFile(path) //nolint:gosec // the operator's own folder
	if err != nil {
		return nil, err
	}
	var file spilled
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("it is no file of usage: %w", err)
	}
	own := s.pepperMarks()
	for _, mark := range file.Peppers {
		for _, mine := range own {
			if mark == mine {
				return &file, nil
			}
		}
	}
	return nil, errors.New("it was counted under other peppers, so for another database")
}
