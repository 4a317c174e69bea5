"""Whether this host has what another job needs."""
