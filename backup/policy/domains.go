package policy

import (
	"slices"
	"strings"
)

// Versions of the file of a policy. An older program refuses a newer one, where it would else back up less than the policy says.
const (
	firstVersion   = 1 // volumes, groups and files
	domainsVersion = 2 // whole machines
	newestVersion  = domainsVersion
)

// version is the least one whose programs know all that the policy says.
func (p *Policy) version() int {
	if len(p.Domains) > 0 {
		return domainsVersion
	}
	return firstVersion
}

// checkTargets says what is wrong with what is backed up; "" if nothing is.
func (p *Policy) checkTargets() string {
	kinds := 0
	for _, given := range []bool{len(p.Volumes) > 0, p.Group != "", len(p.Domains) > 0} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds != 1 || max(len(p.Volumes), len(p.Domains)) > maxVolumes:
		return "it needs volumes, a group, or domains"
	case slices.Contains(p.Domains, ""):
		return "a domain without a name"
	case len(p.Domains) > 0 && len(p.GuestAgents) > 0:
		return "agents of guests: libvirt asks those of its domains"
	case len(p.Domains) == 0 && p.Connect != "":
		return "where libvirt is, and no domains"
	}
	return ""
}

// knowsGuest reports whether a guest that is to be tested is one of the policy: a domain, or volumes with commas between.
func (p *Policy) knowsGuest(guest string) bool {
	if len(p.Domains) > 0 {
		return slices.Contains(p.Domains, guest)
	}
	for volume := range strings.SplitSeq(guest, ",") {
		if volume == "" || p.Group == "" && !slices.Contains(p.Volumes, volume) {
			return false
		}
	}
	return true
}
