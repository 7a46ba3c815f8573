package fsm

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxName = 255  // bytes of one part of a path, or of the name of a snapshot or user
	maxPath = 4096 // bytes
)

// checkPath refuses what can't be the path of anything. A path that it accepts
// is the only form of that path.
func checkPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return refuse(InvalidArgument, "path %q is not absolute", path)
	case len(path) > maxPath:
		return refuse(InvalidArgument, "path of %d bytes: at most %d are allowed", len(path), maxPath)
	case path == "/":
		return nil
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if err := checkName(part); err != nil {
			return refuse(InvalidArgument, "path %q: %v", path, err)
		}
	}
	return nil
}

// checkNew refuses what can't be the path of a new volume.
func checkNew(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if path == "/" {
		return refuse(InvalidArgument, "/ is the root directory")
	}
	if _, name := split(path); strings.Contains(name, "@") {
		return refuse(InvalidArgument, "volume %q: a name with @ would mean a snapshot", path)
	}
	return nil
}

// checkSnapshot refuses what can't be the name of a snapshot.
func checkSnapshot(name string) error {
	if err := checkName(name); err != nil {
		return refuse(InvalidArgument, "snapshot %q: %v", name, err)
	}
	if strings.ContainsAny(name, "/@") {
		return refuse(InvalidArgument, "snapshot %q: the name of a snapshot has no / or @", name)
	}
	return nil
}

// checkUser refuses what can't be the name of a user.
func checkUser(user string) error {
	if err := checkName(user); err != nil {
		return refuse(InvalidArgument, "user %q: %v", user, err)
	}
	return nil
}

// checkGiven refuses a value that is given but that check refuses.
func checkGiven(value string, check func(string) error) error {
	if value == "" {
		return nil
	}
	return check(value)
}

// checkName refuses what can't be a name at all.
func checkName(name string) error {
	switch {
	case name == "":
		return refuse(InvalidArgument, "a name is empty")
	case name == "." || name == "..":
		return refuse(InvalidArgument, "%q is no name", name)
	case len(name) > maxName:
		return refuse(InvalidArgument, "name of %d bytes: at most %d are allowed", len(name), maxName)
	case !utf8.ValidString(name):
		return refuse(InvalidArgument, "a name is not valid UTF-8")
	case strings.ContainsFunc(name, unicode.IsControl):
		return refuse(InvalidArgument, "a name has a control character")
	}
	return nil
}

// split cuts a path into that of its directory, and its name there.
func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 1)], path[i+1:]
}

// join is the inverse of split.
func join(dir, name string) string {
	if dir == "/" {
		return dir + name
	}
	return dir + "/" + name
}
