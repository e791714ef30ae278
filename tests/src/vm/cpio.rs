//! The archive format of an initramfs: cpio's `newc`.
//!
//! Layout from the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: per entry a header
//! of 6 magic bytes and 13 numbers of 8 hexadecimal digits, the NUL-terminated name, padding to 4 bytes, the
//! data, padding to 4 bytes; an entry called `TRAILER!!!` ends the archive. The kernel unpacks archives that
//! follow each other in one file, also with zero bytes in between.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use super::{Error, error::IoContext};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
// File types in st_mode (inode(7)).
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive to be written: a tree of entries by path, relative to the guest's root. Missing parent folders
/// are added; a path that is added twice keeps the later entry.
#[derive(Debug, Default)]
pub(super) struct Archive {
    // Sorted by component, so that every folder comes before what is in it.
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug)]
enum Entry {
    Folder,
    Symlink { target: PathBuf },
    Text { mode: u32, bytes: Vec<u8> },
    HostFile { mode: u32, source: PathBuf, size: u64, modified: (i64, i64) },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

impl Entry {
    fn describe(&self) -> String {
        match self {
            Entry::Folder => "folder".to_owned(),
            Entry::Symlink { target } => format!("-> {}", target.display()),
            Entry::Text { mode, bytes } => format!("{mode:o} {:?}", String::from_utf8_lossy(bytes)),
            Entry::HostFile { mode, source, size, modified: (seconds, nanos) } => {
                format!("{mode:o} {} {size} {seconds}.{nanos:09}", source.display())
            }
            Entry::CharDevice { mode, major, minor } => format!("{mode:o} char {major}:{minor}"),
        }
    }
}

impl Archive {
    /// Adds an empty folder.
    pub(super) fn folder(&mut self, path: impl AsRef<Path>) {
        self.insert(path.as_ref(), Entry::Folder);
    }

    /// Adds a symbolic link at `path` that points to `target`.
    pub(super) fn symlink(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.insert(path.as_ref(), Entry::Symlink { target: target.into() });
    }

    /// Adds a file with these contents and permission bits.
    pub(super) fn text(&mut self, path: impl AsRef<Path>, mode: u32, contents: impl Into<Vec<u8>>) {
        self.insert(path.as_ref(), Entry::Text { mode, bytes: contents.into() });
    }

    /// Adds a character device node.
    pub(super) fn char_device(&mut self, path: impl AsRef<Path>, mode: u32, major: u32, minor: u32) {
        self.insert(path.as_ref(), Entry::CharDevice { mode, major, minor });
    }

    /// Adds a copy of the host's file `source`, symbolic links followed, with its permission bits.
    pub(super) fn host_file(&mut self, path: impl AsRef<Path>, source: &Path) -> Result<(), Error> {
        let metadata = source.metadata().context("read", source)?;
        if !metadata.is_file() {
            return Err(Error::Unexpected(format!("{} is not a regular file", source.display())));
        }
        let entry = Entry::HostFile {
            mode: metadata.permissions().mode() & 0o7777,
            source: source.to_owned(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        self.insert(path.as_ref(), entry);
        Ok(())
    }

    /// Adds the host's file or folder `source` with all that is in it; links inside stay links.
    pub(super) fn host_tree(&mut self, path: &Path, source: &Path) -> Result<(), Error> {
        if !source.is_dir() {
            return self.host_file(path, source);
        }
        self.folder(path);
        for entry in source.read_dir().context("list", source)? {
            let entry = entry.context("list", source)?;
            let (from, to) = (entry.path(), path.join(entry.file_name()));
            let kind = entry.file_type().context("read", &from)?;
            if kind.is_symlink() {
                self.symlink(to, from.read_link().context("read", &from)?);
            } else if kind.is_dir() || kind.is_file() {
                self.host_tree(&to, &from)?;
            }
        }
        Ok(())
    }

    /// Whether there is an entry at `path`.
    pub(super) fn contains(&self, path: impl AsRef<Path>) -> bool {
        self.entries.contains_key(&relative(path.as_ref()))
    }

    /// One line per entry that changes whenever the entry's contents may have changed; host files count as
    /// changed when their size or modification time is.
    pub(super) fn describe(&self) -> String {
        self.entries
            .iter()
            .map(|(path, entry)| format!("{} {}\n", path.display(), entry.describe()))
            .collect()
    }

    /// Writes the archive, padded to a multiple of 512 bytes, so that another one can follow.
    pub(super) fn write_to(&self, out: &mut impl Write) -> Result<(), Error> {
        let archive = Path::new("archive");
        let mut out = Counted { inner: out, written: 0 };
        for (index, (path, entry)) in self.entries.iter().enumerate() {
            // Inode numbers only matter for hard links, which there are none of.
            let inode = u32::try_from(index + 1)
                .map_err(|_| Error::Unexpected("too many files for one archive".to_owned()))?;
            write_entry(&mut out, inode, path, entry)?;
        }
        write_header(&mut out, &Header { nlink: 1, ..Header::default() }, TRAILER.as_bytes())
            .and_then(|()| out.pad_to(512))
            .context("write", archive)
    }

    fn insert(&mut self, path: &Path, entry: Entry) {
        let path = relative(path);
        let mut parent = path.parent();
        while let Some(folder) = parent.filter(|folder| !folder.as_os_str().is_empty()) {
            self.entries.entry(folder.to_owned()).or_insert(Entry::Folder);
            parent = folder.parent();
        }
        self.entries.insert(path, entry);
    }
}

/// The path without a leading slash, `.` or `..`.
fn relative(path: &Path) -> PathBuf {
    path.components().filter(|component| matches!(component, Component::Normal(_))).collect()
}

#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    nlink: u32,
    size: u32,
    rdev: (u32, u32),
}

fn write_entry(
    out: &mut Counted<'_, impl Write>,
    inode: u32,
    path: &Path,
    entry: &Entry,
) -> Result<(), Error> {
    let name = path.as_os_str().as_encoded_bytes();
    let header = |mode, size: usize| {
        let size = u32::try_from(size)
            .map_err(|_| Error::Unexpected(format!("{} is too large for an archive", path.display())))?;
        Ok::<_, Error>(Header { inode, mode, nlink: 1, size, rdev: (0, 0) })
    };
    let (header, data): (Header, &[u8]) = match entry {
        Entry::Folder => (Header { nlink: 2, ..header(S_IFDIR | 0o755, 0)? }, &[]),
        Entry::Symlink { target } => {
            let target = target.as_os_str().as_encoded_bytes();
            (header(S_IFLNK | 0o777, target.len())?, target)
        }
        Entry::Text { mode, bytes } => (header(S_IFREG | mode, bytes.len())?, bytes),
        Entry::CharDevice { mode, major, minor } => {
            (Header { rdev: (*major, *minor), ..header(S_IFCHR | mode, 0)? }, &[])
        }
        Entry::HostFile { mode, source, .. } => {
            let mut bytes = Vec::new();
            File::open(source).and_then(|mut file| file.read_to_end(&mut bytes)).context("read", source)?;
            let header = header(S_IFREG | mode, bytes.len())?;
            return write_parts(out, &header, name, &bytes).context("archive", source);
        }
    };
    write_parts(out, &header, name, data).context("archive", path)
}

fn write_parts(
    out: &mut Counted<'_, impl Write>,
    header: &Header,
    name: &[u8],
    data: &[u8],
) -> io::Result<()> {
    write_header(out, header, name)?;
    out.write_all(data)?;
    out.pad_to(4)
}

/// The header's 13 numbers are: ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor,
/// rdevminor, namesize (with the NUL), check. Owner and times stay 0.
fn write_header(out: &mut Counted<'_, impl Write>, header: &Header, name: &[u8]) -> io::Result<()> {
    let name_size = u32::try_from(name.len() + 1).map_err(|_| io::Error::other("the name is too long"))?;
    let numbers = [
        header.inode,
        header.mode,
        0,
        0,
        header.nlink,
        0,
        header.size,
        0,
        0,
        header.rdev.0,
        header.rdev.1,
        name_size,
        0,
    ];
    out.write_all(MAGIC.as_bytes())?;
    for number in numbers {
        write!(out, "{number:08x}")?;
    }
    out.write_all(name)?;
    out.write_all(&[0])?;
    out.pad_to(4)
}

/// A writer that knows its position, for padding.
struct Counted<'a, W> {
    inner: &'a mut W,
    written: usize,
}

impl<W: Write> Counted<'_, W> {
    /// Writes zero bytes up to a multiple of `alignment`.
    fn pad_to(&mut self, alignment: usize) -> io::Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        self.write_all(&[0; 512][..missing])
    }
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buf)?;
        self.written += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader of the format sees of one entry.
    #[derive(Debug, PartialEq)]
    struct Seen {
        name: String,
        mode: u32,
        rdev: (u32, u32),
        data: Vec<u8>,
    }

    /// A reader that follows the specification, not the writer above.
    fn read(archive: &[u8]) -> Vec<Seen> {
        let mut at = 0;
        let mut seen = Vec::new();
        loop {
            assert_eq!(at % 4, 0, "headers start at a multiple of 4");
            assert_eq!(&archive[at..at + 6], b"070701");
            let number = |index: usize| {
                let start = at + 6 + index * 8;
                let digits = std::str::from_utf8(&archive[start..start + 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_size) = (number(6) as usize, number(11) as usize);
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let data_at = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert!(archive[data_at..].iter().all(|&byte| byte == 0));
                return seen;
            }
            let data = archive[data_at..data_at + size].to_vec();
            seen.push(Seen { name, mode: number(1), rdev: (number(9), number(10)), data });
            at = (data_at + size).next_multiple_of(4);
        }
    }

    fn written(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        bytes
    }

    fn seen(name: &str, mode: u32, rdev: (u32, u32), data: &[u8]) -> Seen {
        Seen { name: name.to_owned(), mode, rdev, data: data.to_vec() }
    }

    #[test]
    fn files_links_devices_and_their_folders() {
        let mut archive = Archive::default();
        archive.text("/usr/bin/five", 0o755, "12345");
        archive.symlink("/bin", "usr/bin");
        archive.char_device("dev/console", 0o600, 5, 1);
        assert_eq!(
            read(&written(&archive)),
            [
                seen("bin", 0o120_777, (0, 0), b"usr/bin"),
                seen("dev", 0o040_755, (0, 0), b""),
                seen("dev/console", 0o020_600, (5, 1), b""),
                seen("usr", 0o040_755, (0, 0), b""),
                seen("usr/bin", 0o040_755, (0, 0), b""),
                seen("usr/bin/five", 0o100_755, (0, 0), b"12345"),
            ]
        );
    }

    #[test]
    fn every_length_of_name_and_data_is_aligned() {
        let mut archive = Archive::default();
        for length in 1..9 {
            archive.text("n".repeat(length), 0o644, "x".repeat(9 - length));
        }
        let entries = read(&written(&archive));
        assert_eq!(entries.len(), 8);
        assert!(entries.iter().all(|entry| entry.name.len() + entry.data.len() == 9));
    }

    #[test]
    fn host_trees_keep_links_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let file = dir.path().join("sub/file");
        std::fs::write(&file, "hello").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("sub/link")).unwrap();
        let mut archive = Archive::default();
        archive.host_tree(Path::new("/opt"), dir.path()).unwrap();
        assert_eq!(
            read(&written(&archive))[2..],
            [
                seen("opt/sub/file", 0o100_750, (0, 0), b"hello"),
                seen("opt/sub/link", 0o120_777, (0, 0), b"file")
            ]
        );
    }

    #[test]
    fn a_folder_comes_before_what_is_in_it() {
        let mut archive = Archive::default();
        // As plain strings, "a-b" sorts between "a" and "a/c".
        archive.text("a/c", 0o644, "");
        archive.text("a-b", 0o644, "");
        let names: Vec<String> = read(&written(&archive)).into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["a", "a/c", "a-b"]);
    }

    #[test]
    fn the_description_follows_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let describe = |contents: &str| {
            std::fs::write(&file, contents).unwrap();
            let mut archive = Archive::default();
            archive.host_file("/file", &file).unwrap();
            archive.describe()
        };
        assert_ne!(describe("short"), describe("longer"));
    }

    #[test]
    fn paths_stay_inside() {
        let mut archive = Archive::default();
        archive.text("/../../etc/x", 0o644, "");
        assert!(archive.contains("etc/x"));
    }
}
