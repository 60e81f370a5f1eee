package main

import "strings"

// vSphere holds slash, backslash and % of a name as %2f, %5c and %25, and takes names either way.
var (
	escapes   = strings.NewReplacer("%", "%25", "/", "%2f", "\\", "%5c")
	unescapes = strings.NewReplacer("%25", "%", "%2f", "/", "%2F", "/", "%5c", "\\", "%5C", "\\")
	fileSafe  = strings.NewReplacer("%", "_", "/", "_", "\\", "_")
)

// plainName is a name as people write it.
func plainName(name string) string { return unescapes.Replace(name) }

// storedName is a name, given either way, as vSphere holds it.
func storedName(name string) string { return escapes.Replace(plainName(name)) }

// fileName is what a VM of this name calls its folder and its files.
func fileName(name string) string { return fileSafe.Replace(plainName(name)) }
