//! The kernel's table of mounts (proc(5), /proc/PID/mountinfo).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the file system.
    pub device: u64,
    /// Which directory or file of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Options of this mount, such as `ro`.
    pub options: Vec<String>,
    /// The file system's type.
    pub fs_type: String,
    /// What is mounted, such as a device's path.
    pub source: String,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether nothing can be written through this mount.
    pub fn is_read_only(&self) -> bool {
        let read_only = |options: &[String]| options.iter().any(|option| option == "ro");
        read_only(&self.options) || read_only(&self.super_options)
    }
}

/// All mounts of this process's mount namespace.
#[derive(Clone, Debug, Default)]
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    /// Reads the table.
    ///
    /// # Errors
    /// If it cannot be read, or the kernel writes it in another form than documented.
    pub fn read() -> io::Result<MountTable> {
        let text = std::fs::read("/proc/self/mountinfo")?;
        MountTable::parse(&text)
    }

    /// Parses the text of mountinfo; paths may hold any bytes.
    ///
    /// # Errors
    /// `InvalidData` with the line that is not as documented.
    pub fn parse(text: &[u8]) -> io::Result<MountTable> {
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let mounts = lines.map(|line| {
            parse_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                io::Error::new(io::ErrorKind::InvalidData, format!("unexpected mountinfo line {line:?}"))
            })
        });
        Ok(MountTable { mounts: mounts.collect::<io::Result<_>>()? })
    }

    /// The uppermost mount at `path`. Symbolic links in the directories above are followed; `path` itself is
    /// not looked at, because looking at a dead mount fails.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        let path = resolve_parent(path);
        self.mounts.iter().rev().find(|mount| mount.mount_point == path)
    }

    /// All mounts of the file system on `device`.
    pub fn of_device(&self, device: u64) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |mount| mount.device == device)
    }

    /// All mounts, in the order in which they were made.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }
}

fn resolve_parent(path: &Path) -> PathBuf {
    match (path.parent().map(std::fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.into(),
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let _id = fields.next()?;
    let _parent = fields.next()?;
    let device = parse_device(std::str::from_utf8(fields.next()?).ok()?)?;
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let options = parse_options(fields.next()?);
    // Optional fields, of a number that may grow, end with a lone hyphen.
    fields.find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = parse_options(fields.next()?);
    Some(Mount { device, root, mount_point, options, fs_type, source, super_options })
}

fn parse_device(field: &str) -> Option<u64> {
    let (major, minor) = field.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn parse_options(field: &[u8]) -> Vec<String> {
    text(field).split(',').map(str::to_owned).collect()
}

fn text(field: &[u8]) -> String {
    unescape(field).to_string_lossy().into_owned()
}

/// Spaces, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:35 / /mnt/a\\040b\\134c rw,nosuid shared:7 master:2 - fuse.holdfast holdfast rw,user_id=0
41 22 7:3 / /mnt/vol rw - ext4 /dev/loop3 ro,noload
42 22 7:300 /sub /mnt/vol ro,noatime - xfs /dev/loop4 rw
";

    #[test]
    fn fields_after_the_optional_ones_are_found() {
        let table = MountTable::parse(TABLE).unwrap();
        let mount = table.iter().nth(1).unwrap();
        assert_eq!(mount.mount_point, Path::new("/mnt/a b\\c"));
        assert_eq!((mount.fs_type.as_str(), mount.device), ("fuse.holdfast", 35));
    }

    #[test]
    fn the_uppermost_mount_counts() {
        let table = MountTable::parse(TABLE).unwrap();
        let mount = table.at(Path::new("/mnt/vol")).unwrap();
        assert_eq!((mount.fs_type.as_str(), mount.root.as_path()), ("xfs", Path::new("/sub")));
        assert!(mount.is_read_only());
        assert!(table.at(Path::new("/mnt")).is_none());
    }

    #[test]
    fn large_minors_are_numbered_as_stat_does() {
        let table = MountTable::parse(TABLE).unwrap();
        assert_eq!(table.of_device(rustix::fs::makedev(7, 300)).count(), 1);
        let root = MountTable::read().unwrap();
        let device = rustix::fs::stat("/").unwrap().st_dev;
        assert_eq!(root.at(Path::new("/")).unwrap().device, device);
    }

    #[test]
    fn another_form_is_an_error() {
        assert!(MountTable::parse(b"22 1 254:0 / / rw ext4 /dev/vda rw").is_err());
        assert!(MountTable::parse(b"22 1 x:0 / / rw - ext4 /dev/vda rw").is_err());
    }
}
