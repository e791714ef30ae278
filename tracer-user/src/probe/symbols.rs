//! Names for kernel addresses, from /proc/kallsyms (fs/proc and kernel/kallsyms.c): the kernel's functions, those of
//! modules, and loaded BPF programs.

use std::collections::HashSet;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest name kept, in bytes (KSYM_NAME_LEN).
const MAX_NAME: usize = 512;
/// Longest module name kept, in bytes (MODULE_NAME_LEN is 56).
const MAX_MODULE: usize = 64;
/// Longest line looked at, in bytes.
const MAX_LINE: u64 = 1024;
/// Most symbols kept; a distribution's kernel with everything loaded has about 200,000.
const MAX_SYMBOLS: usize = 4 << 20;
/// Farthest that an address may be from the start of a function that nothing follows, in bytes.
const MAX_TAIL: u64 = 1 << 20;
/// Addresses remembered as checked.
const MAX_CHECKED: usize = 4096;
/// The module id of the kernel itself.
const KERNEL: u16 = 0;

/// Why symbols could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    /// The file could not be read.
    #[error("cannot read the kernel's symbols from {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// All addresses are zero.
    #[error(
        "the kernel hides its addresses from this process, so places in the kernel have no names: run droptrace as \
         root or with CAP_SYSLOG, and set kernel.kptr_restrict to 0 or 1 (sysctl -w kernel.kptr_restrict=1)"
    )]
    Hidden,
    /// Nothing in it.
    #[error(
        "the kernel lists no functions: it was built without CONFIG_KALLSYMS, so places in it have no names"
    )]
    Empty,
}

/// A place in the kernel. Displayed as `nf_hook_slow+0x7d` or `nft_do_chain+0x3c [nf_tables]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// The function. Printable ASCII.
    pub name: &'a str,
    /// Its module; `bpf` for BPF programs. Printable ASCII.
    pub module: Option<&'a str>,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes to the next symbol: at least the function's size. `None` where nothing of the same module follows.
    pub size: Option<u64>,
}

impl std::fmt::Display for Symbol<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)?;
        match self.module {
            Some(module) => write!(f, " [{module}]"),
            None => Ok(()),
        }
    }
}

/// One symbol: 16 bytes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// Where its name starts in the names.
    name: u32,
    module: u16,
}

/// A parsed /proc/kallsyms: about 5 MB for 120,000 functions.
#[derive(Debug, Default)]
pub struct Symbols {
    /// By address; of several names for one address the file's first is first, as the kernel prints it.
    entries: Vec<Entry>,
    /// All names, in printable ASCII, each with a newline after it.
    names: Vec<u8>,
    /// `modules[id - 1]`
    modules: Vec<Box<str>>,
}

impl Symbols {
    /// Reads symbols; only those of functions are kept.
    ///
    /// # Errors
    /// What the reader says; [`SymbolsError::Hidden`] and [`SymbolsError::Empty`] are left to [`Self::load`].
    pub fn parse(mut reader: impl BufRead) -> io::Result<Self> {
        let mut symbols = Self::default();
        let mut line = Vec::with_capacity(128);
        while symbols.entries.len() < MAX_SYMBOLS {
            line.clear();
            if (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            symbols.add(line.trim_ascii_end());
        }
        symbols.names.shrink_to_fit();
        symbols.entries.shrink_to_fit();
        // Stable. The kernel's own symbols come sorted, so there is little to do.
        symbols.entries.sort_by_key(|entry| entry.address);
        Ok(symbols)
    }

    /// Reads /proc/kallsyms, or a file like it.
    ///
    /// # Errors
    /// If it cannot be read, lists nothing, or hides the addresses.
    pub fn load(path: &Path) -> Result<Self, SymbolsError> {
        let failed = |source| SymbolsError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let symbols = Self::parse(io::BufReader::with_capacity(1 << 16, file)).map_err(failed)?;
        match symbols.entries.last() {
            None => Err(SymbolsError::Empty),
            Some(last) if last.address == 0 => Err(SymbolsError::Hidden),
            Some(_) => Ok(symbols),
        }
    }

    /// Adds a line `ffffffff81000000 T name`, with `\t[module]` after it for what is not in vmlinux. A line of
    /// another form is left out.
    fn add(&mut self, line: &[u8]) {
        let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
        let (Some(address), Some(b"t" | b"T" | b"w" | b"W"), Some(name)) =
            (words.next().and_then(parse_hex), words.next(), words.next())
        else {
            return;
        };
        if name.is_empty() {
            return;
        }
        let Ok(start) = u32::try_from(self.names.len()) else { return };
        let module = match words.next().and_then(|word| word.strip_prefix(b"[")?.strip_suffix(b"]")) {
            Some(module) => self.module_id(module),
            None => KERNEL,
        };
        self.names.extend(name.iter().take(MAX_NAME).map(printable));
        self.names.push(b'\n');
        self.entries.push(Entry { address, name: start, module });
    }

    /// The id of a module; a new one if it is new. Symbols of one module come together.
    fn module_id(&mut self, name: &[u8]) -> u16 {
        let name = &name[..name.len().min(MAX_MODULE)];
        let shown = || name.iter().map(printable);
        let known = self.modules.iter().rposition(|module| module.bytes().eq(shown()));
        let index = known.unwrap_or_else(|| {
            if self.modules.len() < usize::from(u16::MAX) {
                self.modules.push(shown().map(char::from).collect());
            }
            self.modules.len() - 1
        });
        u16::try_from(index + 1).unwrap_or(u16::MAX)
    }

    fn name(&self, entry: Entry) -> &str {
        let rest = self.names.get(entry.name as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        // ASCII by construction.
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }

    /// The function that an address lies in, as far as its symbols tell.
    #[must_use]
    pub fn resolve(&self, address: u64) -> Option<Symbol<'_>> {
        let after = self.entries.partition_point(|entry| entry.address <= address);
        let start = self.entries[..after].last()?.address;
        let first = self.entries.partition_point(|entry| entry.address < start);
        let entry = *self.entries.get(first)?;
        let size = self
            .entries
            .get(after)
            .filter(|next| next.module == entry.module)
            .map(|next| next.address - start);
        let offset = address - start;
        if start == 0 || (size.is_none() && offset >= MAX_TAIL) {
            return None;
        }
        let module = usize::from(entry.module).checked_sub(1).and_then(|index| self.modules.get(index));
        Some(Symbol { name: self.name(entry), module: module.map(|module| &**module), offset, size })
    }

    /// Where a function's text is: from its start to the next symbol. `None` if there is no such function, or more
    /// than one address has its name, so that none is certain.
    #[must_use]
    pub fn range(&self, name: &str) -> Option<(u64, u64)> {
        if name.contains('\n') {
            return None; // Would match two names in a row.
        }
        let mut found = self.entries.iter().filter(|entry| self.is_named(**entry, name));
        let start = found.next()?.address;
        if start == 0 || found.any(|other| other.address != start) {
            return None;
        }
        let after = self.entries.partition_point(|entry| entry.address <= start);
        self.entries.get(after).map(|next| (start, next.address.min(start.saturating_add(MAX_TAIL))))
    }

    /// Whether an entry has that name, without looking for the end of the entry's name.
    fn is_named(&self, entry: Entry, name: &str) -> bool {
        let start = entry.name as usize;
        self.names.get(start + name.len()) == Some(&b'\n') && self.names[start..].starts_with(name.as_bytes())
    }

    /// How many functions are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Symbols that follow the kernel: what a module or BPF program brought later is found too.
#[derive(Debug)]
pub struct Symboliser {
    path: PathBuf,
    symbols: Symbols,
    loaded: Instant,
    /// Least time between two readings.
    interval: Duration,
    /// Addresses behind the last known symbol of something, which a fresh reading confirmed.
    checked: HashSet<u64>,
}

impl Symboliser {
    /// Reads the symbols, and again when they don't explain an address, at most every `interval`. `path` is
    /// /proc/kallsyms.
    ///
    /// # Errors
    /// As [`Symbols::load`].
    pub fn new(path: impl Into<PathBuf>, interval: Duration) -> Result<Self, SymbolsError> {
        let path = path.into();
        let symbols = Symbols::load(&path)?;
        Ok(Self { path, symbols, loaded: Instant::now(), interval, checked: HashSet::new() })
    }

    /// What is known now.
    #[must_use]
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Reads the symbols again; worth it when a module was loaded. What was known is kept if that fails.
    ///
    /// # Errors
    /// As [`Symbols::load`].
    pub fn reload(&mut self) -> Result<(), SymbolsError> {
        self.loaded = Instant::now();
        self.symbols = Symbols::load(&self.path)?;
        self.checked.clear();
        Ok(())
    }

    /// The function that an address lies in. Reads the symbols again if the address is not known, or lies behind the
    /// last symbol of a module, where a newer module or program may be by now.
    pub fn resolve(&mut self, address: u64) -> Option<Symbol<'_>> {
        let doubtful = self.symbols.resolve(address).is_none_or(|symbol| symbol.size.is_none());
        if doubtful && !self.checked.contains(&address) && self.loaded.elapsed() >= self.interval {
            // If it fails, the old symbols are as good as it gets.
            let _ = self.reload();
            if self.checked.len() < MAX_CHECKED && self.symbols.resolve(address).is_some() {
                self.checked.insert(address);
            }
        }
        self.symbols.resolve(address)
    }
}

/// A number in hexadecimal, as the kernel prints addresses.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits
        .iter()
        .try_fold(0, |number: u64, digit| Some(number << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

/// Names end up on terminals.
fn printable(byte: &u8) -> u8 {
    if byte.is_ascii_graphic() { *byte } else { b'?' }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _text
ffffffff81000000 T startup
ffffffff81000100 t ip_rcv
ffffffff81000200 T nf_hook_slow
ffffffff81000280 d some_data
ffffffff81000300 W weak_one
ffffffff82000000 D more_data
ffffffffc0002000 t nft_do_chain\t[nf_tables]
ffffffffc0002100 t init\t[nf_tables]
ffffffffc0001000 t init\t[xt_mark]
ffffffffc0400000 t bpf_prog_6deef7357e7b4530_drop\t[bpf]
";

    fn symbols() -> Symbols {
        Symbols::parse(TEXT.as_bytes()).unwrap()
    }

    fn shown(symbols: &Symbols, address: u64) -> Option<String> {
        symbols.resolve(address).map(|symbol| symbol.to_string())
    }

    #[test]
    fn names_addresses() {
        let symbols = symbols();
        let shown = |address| shown(&symbols, address);
        assert_eq!(symbols.len(), 9);
        assert_eq!(shown(0xffff_ffff_8100_027d).unwrap(), "nf_hook_slow+0x7d");
        assert_eq!(shown(0xffff_ffff_8100_0200).unwrap(), "nf_hook_slow+0x0");
        assert_eq!(
            shown(0xffff_ffff_8100_02ff).unwrap(),
            "nf_hook_slow+0xff",
            "data does not end a function"
        );
        assert_eq!(shown(0xffff_ffff_8100_0001).unwrap(), "_text+0x1", "the first name, as the kernel does");
        assert_eq!(shown(0xffff_ffff_8100_0304).unwrap(), "weak_one+0x4");
        assert_eq!(shown(0xffff_ffff_c000_203c).unwrap(), "nft_do_chain+0x3c [nf_tables]");
        assert_eq!(shown(0xffff_ffff_c000_1001).unwrap(), "init+0x1 [xt_mark]");
        assert_eq!(shown(0xffff_ffff_c040_0010).unwrap(), "bpf_prog_6deef7357e7b4530_drop+0x10 [bpf]");
    }

    #[test]
    fn addresses_in_nothing_have_no_name() {
        let symbols = symbols();
        assert_eq!(shown(&symbols, 0), None);
        assert_eq!(shown(&symbols, 0x7fff_0000_0000), None);
        assert_eq!(shown(&symbols, 0xffff_ffff_9000_0000), None, "far behind the kernel's last function");
        assert_eq!(shown(&symbols, u64::MAX), None);
        assert_eq!(shown(&Symbols::default(), 1), None);
    }

    #[test]
    fn sizes_end_with_the_module() {
        let symbols = symbols();
        let size = |address| symbols.resolve(address).unwrap().size;
        assert_eq!(size(0xffff_ffff_8100_0210), Some(0x100));
        assert_eq!(size(0xffff_ffff_c000_1001), None, "the next symbol is another module's");
        assert_eq!(size(0xffff_ffff_c040_0000), None);
    }

    #[test]
    fn ranges_of_functions() {
        let symbols = symbols();
        assert_eq!(symbols.range("nf_hook_slow"), Some((0xffff_ffff_8100_0200, 0xffff_ffff_8100_0300)));
        assert_eq!(symbols.range("startup"), Some((0xffff_ffff_8100_0000, 0xffff_ffff_8100_0100)));
        assert_eq!(symbols.range("nft_do_chain"), Some((0xffff_ffff_c000_2000, 0xffff_ffff_c000_2100)));
        for absent in ["nf_hook", "nf_hook_slow2", "hook_slow", "", "some_data", "startup\nip_rcv"] {
            assert_eq!(symbols.range(absent), None, "{absent:?}");
        }
        assert_eq!(symbols.range("init"), None, "two modules have one");
    }

    #[test]
    fn hostile_lines() {
        let long = "x".repeat(5000);
        let text = format!(
            "\n \nffffffff81000000\nzzz T a\nffffffff81000000 T \nffffffff81000000000 T b\n\
             ffffffff81000010 T e\x1b[31mvil\nffffffff81000020 T m\t[\x07m]\nffffffff81000030 T {long}\n\
             ffffffff81000040 T last"
        );
        let symbols = Symbols::parse(text.as_bytes()).unwrap();
        assert_eq!(shown(&symbols, 0xffff_ffff_8100_0010).unwrap(), "e?[31mvil+0x0");
        assert_eq!(shown(&symbols, 0xffff_ffff_8100_0020).unwrap(), "m+0x0 [?m]");
        assert_eq!(symbols.resolve(0xffff_ffff_8100_0030).unwrap().name.len(), MAX_NAME);
        assert_eq!(shown(&symbols, 0xffff_ffff_8100_0040).unwrap(), "last+0x0");
        assert_eq!(symbols.len(), 4);
    }

    /// A file in a folder of its own, removed in the end.
    struct Fixture(PathBuf);

    impl Fixture {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("droptrace-symbols-{}-{name}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn hidden_and_empty_files() {
        let hidden = Fixture::new("hidden", "0000000000000000 T _text\n0000000000000000 t ip_rcv\t[ip]\n");
        let error = Symbols::load(&hidden.0).unwrap_err();
        assert!(matches!(error, SymbolsError::Hidden));
        assert!(error.to_string().contains("CAP_SYSLOG") && error.to_string().contains("kptr_restrict"));
        let empty = Fixture::new("empty", "");
        assert!(matches!(Symbols::load(&empty.0), Err(SymbolsError::Empty)));
        assert!(matches!(Symbols::load(Path::new("/nonexistent")), Err(SymbolsError::Read { .. })));
    }

    #[test]
    fn what_came_later_is_found_after_the_interval() {
        let file = Fixture::new("later", TEXT);
        let late = 0xffff_ffff_d000_0004;
        let mut patient = Symboliser::new(&file.0, Duration::from_secs(3600)).unwrap();
        let mut eager = Symboliser::new(&file.0, Duration::ZERO).unwrap();
        assert_eq!(eager.resolve(late), None);
        // A new module, far behind the others; another one close behind the last symbol of nf_tables.
        std::fs::write(
            &file.0,
            format!("{TEXT}ffffffffd0000000 t new\t[late]\nffffffffc0003000 t close\t[near]\n"),
        )
        .unwrap();
        assert_eq!(eager.resolve(0xffff_ffff_8100_0200).unwrap().to_string(), "nf_hook_slow+0x0");
        assert_eq!(eager.symbols().len(), 9, "no need to read again for a known function");
        assert_eq!(eager.resolve(0xffff_ffff_c000_3001).unwrap().to_string(), "close+0x1 [near]");
        assert_eq!(eager.resolve(late).unwrap().to_string(), "new+0x4 [late]");
        assert_eq!(patient.resolve(late), None);
        patient.reload().unwrap();
        assert_eq!(patient.resolve(late).unwrap().to_string(), "new+0x4 [late]");
        // What is known stays if the file cannot be read any more.
        std::fs::write(&file.0, "").unwrap();
        assert_eq!(eager.resolve(1), None);
        assert_eq!(eager.resolve(late).unwrap().to_string(), "new+0x4 [late]");
    }

    #[test]
    fn this_machines_symbols() {
        let Ok(symbols) = Symbols::load(Path::new("/proc/kallsyms")) else { return };
        let (start, end) = symbols.range("ip_rcv").unwrap();
        assert!(end > start && end - start < 1 << 16);
        let symbol = symbols.resolve(end - 1).unwrap();
        assert_eq!((symbol.name, symbol.offset, symbol.size), ("ip_rcv", end - 1 - start, Some(end - start)));
    }
}
