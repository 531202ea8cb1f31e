package config

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// maxFile bounds a configuration file, so that /dev/zero given by mistake ends.
const maxFile = 1 << 20

// readFile returns the settings of a configuration file in their order. An error
// wraps os.ErrNotExist if there is no such file.
func readFile(flags *pflag.FlagSet, name string) ([]setting, error) {
	text, err := readLimited(name)
	if err != nil {
		// The name is said once, with the option to look at.
		if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
			err = pathErr.Err
		}
		return nil, Usagef("--%s %q: %w", ConfigOption, name, err)
	}
	return parse(flags, name, text)
}

func readLimited(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", errors.New("larger than 1 MiB, no configuration file")
	}
	return string(b), nil
}

// parse splits the text of a file into settings; it sets nothing.
func parse(flags *pflag.FlagSet, file, text string) ([]setting, error) {
	var all []setting
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(stripComment(line))
		if line == "" {
			continue
		}
		written, value := line, ""
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			written, value = line[:i], strings.TrimSpace(line[i:])
		}
		flag := flags.Lookup(written)
		switch {
		case flag == nil && strings.HasPrefix(written, "-") && flags.Lookup(strings.TrimLeft(written, "-")) != nil:
			return nil, Usagef("%s:%d: %q: options are written without leading dashes in a file", file, number, written)
		case flag == nil:
			return nil, Usagef("%s:%d: unknown option %q: a line is \"name value\", the names are those of --help", file, number, written)
		case flag.Annotations[commandLineOnly] != nil:
			return nil, Usagef("%s:%d: %s belongs on the command line only", file, number, flag.Name)
		case value == "" && flag.NoOptDefVal == "":
			return nil, Usagef("%s:%d: %s: a value is required", file, number, flag.Name)
		case value == "":
			value = flag.NoOptDefVal
		}
		all = append(all, setting{flag: flag, value: value, where: file + ":" + strconv.Itoa(number)})
	}
	return all, nil
}

// stripComment removes a comment: a "#" at the start of a line or after white
// space. Elsewhere it belongs to a value, such as a file's name.
func stripComment(line string) string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			return line[:i]
		}
	}
	return line
}
