package fsm

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPaths(t *testing.T) {
	t.Parallel()
	part := strings.Repeat("n", maxName)
	for path, ok := range map[string]bool{
		"/":                          true,
		"/a":                         true,
		"/a/b c/..d/e.":              true,
		"/数据/卷":                      true,
		"/a@b":                       true, // as a directory
		"/" + part:                   true,
		"/" + part + "n":             false,
		"":                           false,
		"a":                          false,
		"//":                         false,
		"/a/":                        false,
		"/a//b":                      false,
		"/a/.":                       false,
		"/../a":                      false,
		"/a\x00":                     false,
		"/a\n":                       false,
		"/a\u0085":                   false,
		"/a\x7f":                     false,
		"/\xff":                      false,
		strings.Repeat("/"+part, 16): true, // 4096 bytes
		strings.Repeat("/"+part, 15) + "/a/" + part: false,
	} {
		if err := checkPath(path); (err == nil) != ok {
			t.Errorf("checkPath(%.40q): %v", path, err)
		}
		if ok && path != "/" {
			if dir, name := split(path); join(dir, name) != path {
				t.Errorf("%q is split into %q and %q", path, dir, name)
			}
		}
	}
	if checkNew("/a@b") == nil || checkNew("/") == nil || checkNew("/a@b/c") != nil {
		t.Error("checkNew must refuse @ in the name of a volume, and the root")
	}
}

func TestTrashNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"vol":                          "vol-12",
		strings.Repeat("n", maxName):   strings.Repeat("n", maxName-3) + "-12",
		strings.Repeat("卷", maxName/3): strings.Repeat("卷", maxName/3-1) + "-12",
	} {
		got := trashName(name, 12)
		if got != want || checkName(got) != nil {
			t.Errorf("trashName(%.20q) = %q, want %q", name, got, want)
		}
	}
}

// Whatever is accepted as a path is one: it can be cut and joined, and none of
// its parts could mean anything to a file system.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/", "/a", "/a/../b", "//", "/a\x00b", "/é", "/\xc3", "a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if checkPath(path) != nil || path == "/" {
			return
		}
		dir, name := split(path)
		if join(dir, name) != path || checkPath(dir) != nil || checkName(name) != nil {
			t.Fatalf("%q is cut into %q and %q", path, dir, name)
		}
		if name == ".." || name == "." || name == "" || strings.ContainsAny(name, "/\x00\n") || !utf8.ValidString(name) {
			t.Fatalf("%q is accepted as a name", name)
		}
	})
}
