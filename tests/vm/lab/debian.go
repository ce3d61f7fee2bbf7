package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	suite   = "trixie"
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// fetch downloads the packages with an apt of our own: the host's lists, cache and status are neither used nor changed.
func (b *builder) fetch() error {
	apt := filepath.Join(b.dir, "apt")
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(apt, d), 0o755); err != nil {
			return err
		}
	}
	mirror, err := b.mirror()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"status":       "", // nothing is installed, so everything that is needed is downloaded
		"sources.list": fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite),
		"apt.conf":     aptConf(apt),
	} {
		if err := os.WriteFile(filepath.Join(apt, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	env := []string{"APT_CONFIG=" + filepath.Join(apt, "apt.conf")}
	if _, err := b.run(env, "apt-get", "-q", "update"); err != nil {
		return err
	}
	if _, err := b.run(env, "apt-get", append([]string{"-q", "-y", "--download-only", "install"}, strings.Fields(packages)...)...); err != nil {
		return err
	}
	kernel, err := b.kernelPackage(env)
	if err != nil {
		return err
	}
	b.release = strings.TrimPrefix(kernel, "linux-image-")
	// Not "install": the scripts around a kernel want an initramfs-tools, a boot loader and more.
	_, err = b.run(env, "sh", "-c", fmt.Sprintf("cd '%s/archives' && apt-get -q download %s", apt, kernel))
	return err
}

func aptConf(dir string) string {
	return strings.ReplaceAll(`Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::sourcelist "@/sources.list"; Dir::State "@"; Dir::State::status "@/status"; Dir::State::lists "@/lists";
Dir::Cache "@"; Dir::Cache::archives "@/archives"; Debug::NoLocking "true";
APT::Sandbox::User ""; APT::Architecture "amd64"; APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "3";
`, "@", dir)
}

// mirror is the Debian archive that this host uses itself.
func (b *builder) mirror() (string, error) {
	if m := os.Getenv("MARS_VM_MIRROR"); m != "" {
		return m, nil
	}
	out, err := b.run(nil, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian")
	if err != nil {
		return "", err
	}
	if uris := strings.Fields(out); len(uris) > 0 {
		return uris[0], nil
	}
	return "http://deb.debian.org/debian", nil
}

func (b *builder) kernelPackage(env []string) (string, error) {
	out, err := b.run(env, "apt-cache", "depends", "linux-image-amd64")
	if err != nil {
		return "", err
	}
	for word := range strings.FieldsSeq(out) {
		if strings.HasPrefix(word, "linux-image-") && word != "linux-image-amd64" {
			return word, nil
		}
	}
	return "", fmt.Errorf("the package linux-image-amd64 names no kernel: %s", out)
}

// unpack makes the tree of all packages, without running their scripts, and notes their versions.
func (b *builder) unpack() error {
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(b.tree, "usr", d), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+d, filepath.Join(b.tree, d)); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(b.dir, "apt/archives/*.deb"))
	if err != nil {
		return err
	}
	var names strings.Builder
	for _, deb := range debs {
		if _, err := b.run(nil, "dpkg-deb", "-x", deb, b.tree); err != nil {
			return err
		}
		fmt.Fprintln(&names, strings.TrimSuffix(filepath.Base(deb), ".deb"))
	}
	return os.WriteFile(filepath.Join(b.dir, "packages"), []byte(names.String()), 0o644)
}

// ballast of the packages is left out.
var ballast = []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/dpkg"}

// configure does what the scripts of the packages would have done, as far as it matters here.
func (b *builder) configure() error {
	for _, d := range ballast {
		if err := os.RemoveAll(filepath.Join(b.tree, d)); err != nil {
			return err
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "root", "host", "mnt", "srv", "etc", "etc/lvm", "var/lib/drbd", "var/log"} {
		if err := os.MkdirAll(filepath.Join(b.tree, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":       "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
		"etc/group":        "root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n",
		"etc/mtab":         "",
		"etc/lvm/lvm.conf": lvmConf,
	} {
		os.Remove(filepath.Join(b.tree, name))
		if err := os.WriteFile(filepath.Join(b.tree, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{"usr/bin/sh": "bash", "usr/bin/awk": "gawk", "usr/bin/nc": "nc.openbsd", "etc/mtab": "/proc/self/mounts"} {
		os.Remove(filepath.Join(b.tree, link))
		if err := os.Symlink(to, filepath.Join(b.tree, link)); err != nil {
			return err
		}
	}
	return nil
}

// lvmConf: there is no udev in a machine.
const lvmConf = `activation { udev_sync = 0  udev_rules = 0  monitoring = 0 }
devices { obtain_device_list_from_udev = 0  external_device_info_source = "none"  use_devicesfile = 0  issue_discards = 0 }
global { use_lvmpolld = 0  event_activation = 0 }
backup { backup = 0  archive = 0 }
`
