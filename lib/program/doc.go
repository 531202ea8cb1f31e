// Package program is what the daemons' programs have in common: the options that both have, exit statuses, the one line that says why a program
// ends, the checks of its machine, keys, sockets, and the handling of SIGHUP.
package program
