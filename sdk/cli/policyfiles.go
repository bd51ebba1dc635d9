package cli

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxPolicyBytes is what the service takes.
const maxPolicyBytes = 6 << 20

// readPolicy reads the files of a policy by their slash-separated paths: .rego and
// data.yaml. Other data files are an error, because `opa test` would read them and the
// service would not.
func readPolicy(dir string) (map[string]string, error) {
	files := make(map[string]string)
	total := 0
	if mounted := filepath.Join(dir, "..data"); isFolder(mounted) {
		dir = mounted // as Kubernetes mounts a ConfigMap
	}
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch base := filepath.Base(name); {
		case err != nil:
			return err
		case name != "." && strings.HasPrefix(base, "."):
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return nil
		case linksToFolder(root, name, entry):
			return fmt.Errorf("%s: it is a link to a folder, whose files would be left out; put the folder in its place", name)
		case filepath.Ext(base) == ".rego" || base == "data.yaml":
		case filepath.Ext(base) == ".yaml", filepath.Ext(base) == ".yml", filepath.Ext(base) == ".json":
			return fmt.Errorf("%s: data of a policy stands in files named data.yaml", name)
		default:
			return nil
		}
		info, err := fs.Stat(root, name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || info.Size() > maxPolicyBytes {
			return fmt.Errorf("%s: it is not a regular file of at most %d bytes", name, maxPolicyBytes)
		}
		content, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		if total += len(content); total > maxPolicyBytes {
			return fmt.Errorf("%s: a policy has at most %d bytes, all files together", name, maxPolicyBytes)
		}
		files[name] = string(content)
		return nil
	})
	if inside := filepath.Join(dir, "policies"); err != nil && isFolder(inside) && isThere(filepath.Join(dir, "capabilities.json")) {
		return nil, fmt.Errorf("%s is what `keystile policy export` wrote, with capabilities.json and schemas for the stock opa; the policy is a folder in it: give %s", dir, inside)
	}
	if err != nil {
		return nil, fmt.Errorf("read the policy in %s: %w", dir, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no .rego file in %s", dir)
	}
	return files, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func linksToFolder(root fs.FS, name string, entry fs.DirEntry) bool {
	if entry.Type()&fs.ModeSymlink == 0 {
		return false
	}
	info, err := fs.Stat(root, name)
	return err == nil && info.IsDir()
}
