# shellcheck shell=bash
# Packages of Debian trixie for a machine that runs an older Debian. Nothing is installed, and nothing of the machine's own
# configuration changes: the lists and the packages are in a folder of their own. apt checks signatures and sums.

# trixie DIR puts the lists into DIR and sets APT, the command to get packages with. DIR exists.
trixie() {
  local a=$1 site id codename
  # shellcheck disable=SC1091
  id=$(. /etc/os-release && echo "${ID:-}")
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  [ "$id" = debian ] || { echo "packages of Debian trixie are had on Debian alone, this is ${id:-unknown}" >&2; return 1; }
  # shellcheck disable=SC2016
  site() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Release: $codename" | head -n 1; }
  site=$(site)
  [ "$site" ] || { apt-get -qq -o DPkg::Lock::Timeout=300 update; site=$(site); }
  mkdir -p "$a/lists/partial" "$a/archives/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site trixie main" >"$a/sources.list"
  # shellcheck disable=SC2034 # for who calls
  APT=(apt-get -qq -o Dir::Etc::SourceList="$a/sources.list" -o Dir::Etc::SourceParts=/dev/null
       -o Dir::State::Lists="$a/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$a"
       -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
}
