//! Debian's cloud kernel and the modules that the machine needs, in the order in which they load.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result, fail};
use crate::{deb, paths, sh};

/// The package that depends on the current kernel, and the start of that kernel's name.
const PACKAGE: &str = "linux-image-cloud-amd64";
const PREFIX: &str = "linux-image-";

/// Modules asked for; those that they depend on are added, those built into the kernel left out.
const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "overlay",
    "loop",
    "fuse",
    "tun",
    "veth",
    "nf_tables",
];

/// A kernel in the cache.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// Files, each after those that it depends on.
    pub(super) modules: Vec<PathBuf>,
}

/// Downloads the kernel, unless it is cached.
pub(super) fn fetch() -> Result<Kernel> {
    let package = deb::dependency(PACKAGE, PREFIX)?;
    let folder = deb::unpack(&paths::cache()?.join("vm/kernel"), &package)?;
    let release = package.trim_start_matches(PREFIX);
    let image = folder.join(format!("boot/vmlinuz-{release}"));
    if !image.is_file() {
        return fail(format!("{package} has no {}", image.display()));
    }
    // A Debian with merged /usr has its modules there.
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|parent| folder.join(parent).join(release))
        .into_iter()
        .find(|folder| folder.is_dir())
        .ok_or_else(|| Error::new(format!("{package} has no modules")))?;
    Ok(Kernel {
        modules: load_order(&modules)?,
        image,
    })
}

/// The module's bytes, unpacked: busybox's insmod takes no compressed ones.
pub(super) fn read(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return fs::read(module).context(|| format!("cannot read {}", module.display()));
        }
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(module)
        .output()
        .context(|| format!("cannot start `{program}`, which unpacks kernel modules"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        fail(format!("`{program}` cannot unpack {}", module.display()))
    }
}

/// The name as the kernel uses it: `ext4` for `kernel/fs/ext4/ext4.ko.xz`.
pub(super) fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let name = name.split_once(".ko").map_or(&*name, |(name, _)| name);
    name.replace('-', "_")
}

fn load_order(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = sh::output(Command::new("find").arg(folder).args(["-name", "*.ko*"]))?;
    let files: HashMap<String, PathBuf> = listed
        .lines()
        .map(|line| (module_name(Path::new(line)), PathBuf::from(line)))
        .collect();
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

/// Adds a module after all that it depends on. `modules.dep` is made at installation, so each is asked itself.
fn add(name: &str, files: &HashMap<String, PathBuf>, order: &mut Vec<PathBuf>) -> Result<()> {
    let Some(file) = files.get(name) else {
        // Built in, or not part of this kernel: the machine's own checks notice what is missing.
        return Ok(());
    };
    if order.contains(file) {
        return Ok(());
    }
    for dependency in dependencies(&read(file)?) {
        add(&dependency, files, order)?;
    }
    order.push(file.clone());
    Ok(())
}

/// The `depends=` entry of a module's information section.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|bytes| bytes == key) else {
        return Vec::new();
    };
    let rest = &module[at + key.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        assert_eq!(
            dependencies(b"x\0license=GPL\0depends=virtio,virtio-ring\0name=a\0"),
            ["virtio", "virtio_ring"]
        );
        assert!(dependencies(b"x\0depends=\0name=a\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn file_names_become_module_names() {
        assert_eq!(module_name(Path::new("/x/crc32c-intel.ko.xz")), "crc32c_intel");
        assert_eq!(module_name(Path::new("ext4.ko")), "ext4");
    }

    #[test]
    fn dependencies_load_first() {
        let folder = tempfile::tempdir().unwrap();
        for (name, depends) in [("virtio_blk", "virtio"), ("virtio", "virtio-ring"), ("virtio-ring", "")] {
            std::fs::write(
                folder.path().join(format!("{name}.ko")),
                format!("\0depends={depends}\0"),
            )
            .unwrap();
        }
        let order: Vec<_> = load_order(folder.path())
            .unwrap()
            .iter()
            .map(|file| module_name(file))
            .collect();
        assert_eq!(order, ["virtio_ring", "virtio", "virtio_blk"]);
    }
}
