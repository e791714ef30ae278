//! BTF, the kernel's own description of its types: a reader for `/sys/kernel/btf/vmlinux` and for the *split*
//! BTF of modules, whose type ids and string offsets go on where vmlinux's end.
//!
//! Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h. Everything read is checked: damaged input gives
//! an error or a "not found", and no chain of types is followed without a bound.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `BTF_MAGIC`, in the byte order of whoever wrote the file.
const MAGIC: u16 = 0xeb9f;
/// `BTF_VERSION`
const VERSION: u8 = 1;
/// `struct btf_header` up to `str_len`; newer kernels append `layout_off` and `layout_len`.
const HEADER: usize = 24;
/// `struct btf_header` with the layout section's place.
const HEADER_WITH_LAYOUT: usize = 32;
/// `struct btf_type`: name_off, info, and size or type.
const TYPE: usize = 12;
/// `BTF_MAX_TYPE`
const MAX_TYPES: usize = 0x000f_ffff;
/// Largest file read, in bytes. A vmlinux with everything built in has about 20 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Longest chain of typedefs, modifiers and pointers that is followed.
const MAX_CHAIN: usize = 64;
/// Deepest nesting of structs without a name.
const MAX_DEPTH: usize = 16;
/// Most members looked at for one field (struct task_struct has about 300).
const MAX_MEMBERS: usize = 1 << 16;
/// Longest name looked at, in bytes (KSYM_NAME_LEN is 512): what keeps damaged strings from costing minutes.
const MAX_NAME: usize = 1024;
/// Bytes of a pointer: droptrace runs on 64-bit kernels only.
const POINTER_SIZE: u64 = 8;

/// `BTF_KIND_*` (include/uapi/linux/btf.h)
mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const PTR: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const FWD: u8 = 7;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const FUNC: u8 = 12;
    pub(super) const FUNC_PROTO: u8 = 13;
    pub(super) const VAR: u8 = 14;
    pub(super) const DATASEC: u8 = 15;
    pub(super) const FLOAT: u8 = 16;
    pub(super) const DECL_TAG: u8 = 17;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM64: u8 = 19;
}

/// Why BTF could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel has none.
    #[error(
        "{} does not exist: this kernel was built without type information (CONFIG_DEBUG_INFO_BTF), which \
         droptrace needs to find its way through kernel structures; boot a kernel that has it (Debian 11, Ubuntu \
         20.10, RHEL 8.2, Fedora 31 and later do), or look whether /sys is mounted here", path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A module's name has characters that none has.
    #[error("{0:?} is not a module's name: those have letters, digits and underscores only")]
    ModuleName(String),
    /// The file is not BTF, or is cut off.
    #[error("damaged BTF: {0}")]
    Header(&'static str),
    /// A type's record is damaged.
    #[error("damaged BTF: type {id}: {problem}")]
    Type {
        /// The type's id.
        id: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Parsed BTF: the raw bytes and an index of them. About 6.5 MB for a distribution's vmlinux, so drop it when the
/// offsets are known, and read it again when a module loads.
#[derive(Debug)]
pub struct Btf {
    base: Option<Arc<Btf>>,
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// The id of the first type here; those before are the base's (0 is `void`).
    first_id: u32,
    /// The string offset at which `strings` starts; those before are the base's.
    first_string: u32,
    /// Of each type here, in order of ids: where its record starts in `bytes`.
    records: Vec<u32>,
    /// Of each type here, in order of ids: [`hash`] of its kind and name. Finding a name is one sweep over this.
    hashes: Vec<u32>,
}

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the outermost struct; of a bitfield, of the byte with its first bit (where bits are
    /// counted from the least significant one).
    pub offset: u32,
    /// Bytes of the field's type; 0 for a flexible array and for types that this BTF only declares.
    pub size: u32,
    /// Bits, for a bitfield.
    pub bits: Option<u8>,
}

/// One value of an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnumValue<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number; wide enough for both the signed and the unsigned 64-bit kind.
    pub value: i128,
}

/// One argument of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument<'a> {
    /// Its name; empty where only the function's type is known.
    pub name: &'a str,
    /// Name of its type, or of what it points to, without `struct`, `enum` and modifiers; `void` for nothing.
    pub type_name: &'a str,
    /// How many pointers are between it and that type: 1 for `struct sk_buff *`.
    pub pointers: u32,
}

/// One type's record.
#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u8,
    /// `kind_flag`: bitfield offsets in structs, signed values in enums.
    flag: bool,
    name: u32,
    /// Bytes of the type, or the type that this one refers to.
    size_or_type: u32,
    /// What follows: members, values, parameters.
    body: &'a [u8],
}

/// A member as a lookup returns it.
#[derive(Clone, Copy)]
struct Member {
    /// Bits from the start of the struct that the lookup began in.
    bit_offset: u64,
    /// 0: no bitfield.
    bits: u8,
    type_id: u32,
}

impl Btf {
    /// Parses `bytes`; `base` is vmlinux's BTF if this is a module's.
    ///
    /// # Errors
    /// [`BtfError::Header`] or [`BtfError::Type`] if the bytes are not BTF, are cut off or contradict themselves.
    pub fn parse(bytes: Vec<u8>, base: Option<Arc<Self>>) -> Result<Self, BtfError> {
        let header = Header::parse(&bytes)?;
        if base.is_none() && header.strings.is_empty() {
            return Err(BtfError::Header("it has no strings"));
        }
        if bytes[header.strings.clone()].last().is_some_and(|last| *last != 0) {
            return Err(BtfError::Header("the last string has no end"));
        }
        let (first_id, first_string) = match &base {
            Some(base) => (base.end_id(), base.end_string()),
            None => (1, 0),
        };
        let mut btf = Self {
            base,
            bytes,
            strings: header.strings,
            first_id,
            first_string,
            records: Vec::new(),
            hashes: Vec::new(),
        };
        btf.index(&header.types, &header.layout)?;
        Ok(btf)
    }

    /// Walks over all types once.
    fn index(&mut self, types: &Range<usize>, layout: &Range<usize>) -> Result<(), BtfError> {
        let guess = types.len() / 24; // Bytes per type in vmlinux, about.
        let (mut records, mut hashes) = (Vec::with_capacity(guess), Vec::with_capacity(guess));
        let mut at = types.start;
        while at < types.end {
            let id = self.first_id as usize + records.len();
            let damaged = |problem| BtfError::Type { id, problem };
            if id > MAX_TYPES {
                return Err(damaged("there are too many types"));
            }
            let record = &self.bytes[at..types.end];
            let (Some(name), Some(info)) = (word(record, 0), word(record, 4)) else {
                return Err(damaged("it is cut off"));
            };
            let size = TYPE
                + body_size(info, &self.bytes[layout.clone()])
                    .ok_or_else(|| damaged("its kind is unknown"))?;
            if size > record.len() {
                return Err(damaged("it is cut off"));
            }
            records.push(u32::try_from(at).map_err(|_| damaged("the file is too large"))?);
            hashes.push(hash(kind_of(info), self.string(name)));
            at += size;
        }
        records.shrink_to_fit();
        hashes.shrink_to_fit();
        self.records = records;
        self.hashes = hashes;
        Ok(())
    }

    /// The id after the last one.
    fn end_id(&self) -> u32 {
        // `index` keeps ids within MAX_TYPES.
        self.first_id + u32::try_from(self.records.len()).unwrap_or(u32::MAX - self.first_id)
    }

    /// The string offset after the last one.
    fn end_string(&self) -> u32 {
        self.first_string.saturating_add(u32::try_from(self.strings.len()).unwrap_or(u32::MAX))
    }

    /// The string at an offset; empty where there is none.
    fn string(&self, offset: u32) -> &[u8] {
        if offset < self.first_string {
            return self.base.as_ref().map_or(&[], |base| base.string(offset));
        }
        let strings = &self.bytes[self.strings.clone()];
        let rest = strings.get((offset - self.first_string) as usize..).unwrap_or_default();
        let rest = &rest[..rest.len().min(MAX_NAME)];
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        &rest[..end]
    }

    /// As [`Self::string`]; empty also where it is not UTF-8 (no name in the kernel isn't).
    fn name(&self, offset: u32) -> &str {
        std::str::from_utf8(self.string(offset)).unwrap_or_default()
    }

    /// The record of a type; `None` for `void` and for ids that don't exist.
    fn get(&self, id: u32) -> Option<Type<'_>> {
        if id < self.first_id {
            return self.base.as_ref()?.get(id);
        }
        let index = (id - self.first_id) as usize;
        let start = *self.records.get(index)? as usize;
        let record = self.bytes.get(start..)?;
        let info = word(record, 4)?;
        // The layout section only tells how to step over kinds that nobody here asks for.
        let size = body_size(info, &[]).unwrap_or(0);
        Some(Type {
            kind: kind_of(info),
            flag: info >> 31 != 0,
            name: word(record, 0)?,
            size_or_type: word(record, 8)?,
            body: record.get(TYPE..TYPE + size)?,
        })
    }

    /// The id of the first type of that kind and name: here, else in the base.
    fn find(&self, wanted: u8, name: &str) -> Option<u32> {
        let hashed = hash(wanted, name.as_bytes());
        let here =
            self.hashes.iter().enumerate().filter(|(_, found)| **found == hashed).find_map(|(index, _)| {
                let id = self.first_id + u32::try_from(index).ok()?;
                let found = self.get(id)?;
                (found.kind == wanted && self.string(found.name) == name.as_bytes()).then_some(id)
            });
        here.or_else(|| self.base.as_ref()?.find(wanted, name))
    }

    /// Follows typedefs and modifiers.
    fn strip(&self, mut id: u32) -> Option<(u32, Type<'_>)> {
        for _ in 0..MAX_CHAIN {
            let found = self.get(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.size_or_type;
                }
                _ => return Some((id, found)),
            }
        }
        None
    }

    /// Bytes of a type.
    fn size(&self, mut id: u32) -> Option<u64> {
        let mut factor = 1_u64;
        for _ in 0..MAX_CHAIN {
            let (_, found) = self.strip(id)?;
            match found.kind {
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                    return factor.checked_mul(u64::from(found.size_or_type));
                }
                kind::PTR => return factor.checked_mul(POINTER_SIZE),
                kind::ARRAY => {
                    let (element, length) = array(found)?;
                    factor = factor.checked_mul(u64::from(length))?;
                    id = element;
                }
                _ => return None,
            }
        }
        None
    }

    /// The struct or union of that name.
    fn container(&self, name: &str) -> Option<u32> {
        self.find(kind::STRUCT, name).or_else(|| self.find(kind::UNION, name))
    }

    /// Looks for a member in a struct and in the structs and unions without a name inside it.
    fn member(&self, id: u32, name: &str, depth: usize, budget: &mut usize) -> Option<Member> {
        let (_, found) = self.strip(id)?;
        if depth > MAX_DEPTH || !matches!(found.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for entry in found.body.chunks_exact(12) {
            *budget = budget.checked_sub(1)?;
            let (member_name, type_id) = (word(entry, 0)?, word(entry, 4)?);
            let packed = word(entry, 8)?;
            // With kind_flag: the width of a bitfield above 24 bits of offset.
            let (bit_offset, bits) =
                if found.flag { (packed & 0x00ff_ffff, packed.to_be_bytes()[0]) } else { (packed, 0) };
            let bit_offset = u64::from(bit_offset);
            let member_name = self.string(member_name);
            if member_name.is_empty() {
                if let Some(inner) = self.member(type_id, name, depth + 1, budget) {
                    return Some(Member { bit_offset: bit_offset + inner.bit_offset, ..inner });
                }
            } else if member_name == name.as_bytes() {
                return Some(Member { bit_offset, bits, type_id });
            }
        }
        None
    }

    /// Finds a field by its path: `mark`, `ns.inum`, `tuplehash[1].tuple`. Members of structs and unions without
    /// a name need no step of their own. `None`: this kernel has no such field.
    #[must_use]
    pub fn field(&self, container: &str, path: &str) -> Option<Field> {
        let mut type_id = self.container(container)?;
        let mut budget = MAX_MEMBERS;
        let (mut bit_offset, mut bits) = (0_u64, 0);
        for step in path.split('.') {
            let (name, index) = parse_step(step)?;
            let member = self.member(type_id, name, 0, &mut budget)?;
            bit_offset = bit_offset.checked_add(member.bit_offset)?;
            bits = member.bits;
            type_id = member.type_id;
            if let Some(index) = index {
                let (element, length) = array(self.strip(type_id)?.1)?;
                if index >= length {
                    return None;
                }
                let skipped = self.size(element)?.checked_mul(8)?.checked_mul(u64::from(index))?;
                bit_offset = bit_offset.checked_add(skipped)?;
                type_id = element;
            }
        }
        Some(Field {
            offset: u32::try_from(bit_offset / 8).ok()?,
            size: self.size(type_id).and_then(|size| u32::try_from(size).ok()).unwrap_or(0),
            bits: (bits != 0).then_some(bits),
        })
    }

    /// [`Field::offset`] of [`Self::field`].
    #[must_use]
    pub fn offset_of(&self, container: &str, path: &str) -> Option<u32> {
        self.field(container, path).map(|field| field.offset)
    }

    /// Bytes of the struct or union of that name; `None` if it doesn't exist or is only declared.
    #[must_use]
    pub fn size_of(&self, container: &str) -> Option<u32> {
        Some(self.get(self.container(container)?)?.size_or_type)
    }

    /// The values of the enum of that name.
    #[must_use]
    pub fn enum_values(&self, name: &str) -> Option<Vec<EnumValue<'_>>> {
        let id = self.find(kind::ENUM, name).or_else(|| self.find(kind::ENUM64, name))?;
        let found = self.get(id)?;
        let width = if found.kind == kind::ENUM { 8 } else { 12 };
        let value = |entry: &[u8]| {
            let low = word(entry, 4)?;
            Some(match (width, found.flag) {
                (8, true) => i128::from(low.cast_signed()),
                (8, false) => i128::from(low),
                (_, signed) => {
                    let both = u64::from(word(entry, 8)?) << 32 | u64::from(low);
                    if signed { i128::from(both.cast_signed()) } else { i128::from(both) }
                }
            })
        };
        found
            .body
            .chunks_exact(width)
            .map(|entry| Some(EnumValue { name: self.name(word(entry, 0)?), value: value(entry)? }))
            .collect()
    }

    /// The names of all enums here (a module's: without vmlinux's).
    pub fn enum_names(&self) -> impl Iterator<Item = &str> {
        (self.first_id..self.end_id())
            .filter_map(|id| self.get(id))
            .filter(|found| matches!(found.kind, kind::ENUM | kind::ENUM64))
            .map(|found| self.name(found.name))
            .filter(|name| !name.is_empty())
    }

    /// True if the kernel (or module) has a function of that name. Functions that were inlined everywhere, and
    /// some that the compiler changed (`.isra`), are not listed.
    #[must_use]
    pub fn has_func(&self, name: &str) -> bool {
        self.find(kind::FUNC, name).is_some()
    }

    /// The arguments of a function, with their names.
    #[must_use]
    pub fn func_arguments(&self, name: &str) -> Option<Vec<Argument<'_>>> {
        let func = self.get(self.find(kind::FUNC, name)?)?;
        self.arguments(func.size_or_type)
    }

    /// The arguments of what the typedef of that name points to: `btf_trace_kfree_skb` for the tracepoint
    /// kfree_skb. They have no names; a tracepoint's first is its `void *__data`.
    #[must_use]
    pub fn typedef_arguments(&self, name: &str) -> Option<Vec<Argument<'_>>> {
        let (_, pointer) = self.strip(self.find(kind::TYPEDEF, name)?)?;
        if pointer.kind != kind::PTR {
            return None;
        }
        self.arguments(pointer.size_or_type)
    }

    fn arguments(&self, id: u32) -> Option<Vec<Argument<'_>>> {
        let (_, proto) = self.strip(id)?;
        if proto.kind != kind::FUNC_PROTO {
            return None;
        }
        let argument = |entry: &[u8]| {
            let (type_name, pointers) = self.pointee(word(entry, 4)?)?;
            Some(Argument { name: self.name(word(entry, 0)?), type_name, pointers })
        };
        proto.body.chunks_exact(8).map(argument).collect()
    }

    /// What a type is once pointers and modifiers are off: its name, and how many pointers there were.
    fn pointee(&self, mut id: u32) -> Option<(&str, u32)> {
        let mut pointers = 0;
        for _ in 0..MAX_CHAIN {
            if id == 0 {
                return Some(("void", pointers));
            }
            let found = self.get(id)?;
            match found.kind {
                kind::PTR => pointers += 1,
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {}
                _ => return Some((self.name(found.name), pointers)),
            }
            id = found.size_or_type;
        }
        None
    }
}

/// The folder in which the kernel shows its BTF.
#[derive(Clone, Debug)]
pub struct BtfDir {
    path: PathBuf,
}

impl Default for BtfDir {
    fn default() -> Self {
        Self::new("/sys/kernel/btf")
    }
}

impl BtfDir {
    /// A folder with a file `vmlinux` and one for each module.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Reads the kernel's BTF.
    ///
    /// # Errors
    /// [`BtfError::Missing`] if the kernel has none, others if it cannot be read or is damaged.
    pub fn load_vmlinux(&self) -> Result<Btf, BtfError> {
        let path = self.path.join("vmlinux");
        let bytes = read(&path)?.ok_or(BtfError::Missing { path })?;
        Btf::parse(bytes, None)
    }

    /// Reads the BTF of a loaded module. `None`: the module is not loaded, is built in, or the kernel does not
    /// show modules' BTF (before 5.11, or without CONFIG_DEBUG_INFO_BTF_MODULES).
    ///
    /// # Errors
    /// If it cannot be read or is damaged, or `module` is not a module's name.
    pub fn load_module(&self, module: &str, vmlinux: &Arc<Btf>) -> Result<Option<Btf>, BtfError> {
        if module.is_empty() || !module.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(BtfError::ModuleName(module.chars().take(64).collect()));
        }
        match read(&self.path.join(module))? {
            Some(bytes) => Btf::parse(bytes, Some(Arc::clone(vmlinux))).map(Some),
            None => Ok(None),
        }
    }
}

/// Reads a file whole; `None` if it doesn't exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, BtfError> {
    let failed = |source| BtfError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let size = file.metadata().map_err(failed)?.len().min(MAX_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// The sections, as ranges of the file.
struct Header {
    types: Range<usize>,
    strings: Range<usize>,
    /// Sizes of all kinds that the writer knew: `struct btf_layout` each. Empty before 7.1.
    layout: Range<usize>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        if magic == Some(MAGIC.swap_bytes()) {
            return Err(BtfError::Header("it was written for a machine of the other byte order"));
        }
        if magic != Some(MAGIC) || bytes.len() < HEADER {
            return Err(BtfError::Header("it does not start with BTF's header"));
        }
        if bytes[2] != VERSION {
            return Err(BtfError::Header("its version is not 1"));
        }
        let header_size = word(bytes, 4).map_or(0, |size| size as usize);
        if header_size < HEADER || header_size > bytes.len() {
            return Err(BtfError::Header("the header is cut off"));
        }
        let section = |at: usize| {
            let start = header_size.checked_add(word(bytes, at)? as usize)?;
            let end = start.checked_add(word(bytes, at + 4)? as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let layout = if header_size >= HEADER_WITH_LAYOUT { section(24) } else { Some(0..0) };
        match (section(8), section(16), layout) {
            (Some(types), Some(strings), Some(layout)) => Ok(Self { types, strings, layout }),
            _ => Err(BtfError::Header("a section lies outside the file")),
        }
    }
}

/// The four bytes at an offset.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `BTF_INFO_KIND`: seven bits, of which kernels before 7.1 use five.
fn kind_of(info: u32) -> u8 {
    info.to_be_bytes()[0] & 0x7f
}

/// Bytes that follow a type's record. `BTF_INFO_VLEN` has 24 bits, of which kernels before 7.1 use 16.
fn body_size(info: u32, layout: &[u8]) -> Option<usize> {
    let length = (info & 0x00ff_ffff) as usize;
    Some(match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => length.checked_mul(12)?,
        kind::ENUM | kind::FUNC_PROTO => length.checked_mul(8)?,
        kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT => 0,
        kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
        unknown => {
            // struct btf_layout: info_sz, elem_sz, flags (u16), indexed by kind.
            let entry = layout.get(usize::from(unknown) * 4..)?.first_chunk::<4>()?;
            usize::from(entry[0]) + length.checked_mul(usize::from(entry[1]))?
        }
    })
}

/// `struct btf_array`: the element's type and how many there are.
fn array(found: Type<'_>) -> Option<(u32, u32)> {
    if found.kind != kind::ARRAY {
        return None;
    }
    Some((word(found.body, 0)?, word(found.body, 8)?))
}

/// Splits `name[3]`.
fn parse_step(step: &str) -> Option<(&str, Option<u32>)> {
    match step.split_once('[') {
        None => Some((step, None)),
        Some((name, rest)) => Some((name, Some(rest.strip_suffix(']')?.parse().ok()?))),
    }
}

/// FNV-1a (32 bits) of a name, of which each kind of type has its own.
fn hash(kind: u8, name: &[u8]) -> u32 {
    let start = 0x811c_9dc5_u32 ^ u32::from(kind);
    name.iter().fold(start, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Builds small BTF for tests.
#[cfg(test)]
pub(crate) mod synthetic {
    use super::{Btf, kind};
    use std::sync::Arc;

    pub(crate) struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        next: u32,
        first_string: u32,
    }

    impl Builder {
        pub(crate) fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0], next: 1, first_string: 0 }
        }

        /// For split BTF on top of `base`.
        pub(crate) fn on(base: &Btf) -> Self {
            let (next, first_string) = (base.end_id(), base.end_string());
            Self { types: Vec::new(), strings: Vec::new(), next, first_string }
        }

        pub(crate) fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let offset = self.first_string + u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(text.as_bytes());
            self.strings.push(0);
            offset
        }

        pub(crate) fn add(&mut self, name: &str, info: u32, size_or_type: u32, body: &[u32]) -> u32 {
            let name = self.string(name);
            for word in [name, info, size_or_type].iter().chain(body) {
                self.types.extend(word.to_ne_bytes());
            }
            self.next += 1;
            self.next - 1
        }

        fn list(&mut self, name: &str, kind: u8, size: u32, entries: &[(&str, u32, u32)]) -> u32 {
            let mut body = Vec::new();
            for (name, type_id, offset) in entries {
                body.extend([self.string(name), *type_id, *offset]);
            }
            self.add(name, info(kind, entries.len()), size, &body)
        }

        pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
            self.add(name, info(kind::INT, 0), size, &[size * 8])
        }

        pub(crate) fn pointer(&mut self, to: u32) -> u32 {
            self.add("", info(kind::PTR, 0), to, &[])
        }

        pub(crate) fn array(&mut self, of: u32, length: u32) -> u32 {
            self.add("", info(kind::ARRAY, 0), 0, &[of, 0, length])
        }

        pub(crate) fn modifier(&mut self, kind: u8, name: &str, of: u32) -> u32 {
            self.add(name, info(kind, 0), of, &[])
        }

        pub(crate) fn typedef(&mut self, name: &str, of: u32) -> u32 {
            self.modifier(kind::TYPEDEF, name, of)
        }

        /// Members: name, type, bits from the start.
        pub(crate) fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
            self.list(name, kind::STRUCT, size, members)
        }

        pub(crate) fn union(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
            self.list(name, kind::UNION, size, members)
        }

        pub(crate) fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) -> u32 {
            let mut body = Vec::new();
            for (name, value) in values {
                body.extend([self.string(name), *value]);
            }
            self.add(name, info(kind::ENUM, values.len()), 4, &body)
        }

        pub(crate) fn proto(&mut self, arguments: &[(&str, u32)]) -> u32 {
            let mut body = Vec::new();
            for (name, type_id) in arguments {
                body.extend([self.string(name), *type_id]);
            }
            self.add("", info(kind::FUNC_PROTO, arguments.len()), 0, &body)
        }

        pub(crate) fn func(&mut self, name: &str, proto: u32) -> u32 {
            self.modifier(kind::FUNC, name, proto)
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            self.bytes_with_layout(&[])
        }

        pub(crate) fn bytes_with_layout(&self, layout: &[u8]) -> Vec<u8> {
            let [types, strings, layout_len] =
                [self.types.len(), self.strings.len(), layout.len()].map(|len| u32::try_from(len).unwrap());
            let mut header = vec![0, types, types, strings, types + strings, layout_len];
            header.insert(0, if layout.is_empty() { 24 } else { 32 });
            header.truncate(if layout.is_empty() { 5 } else { 7 });
            let mut bytes = super::MAGIC.to_ne_bytes().to_vec();
            bytes.extend([super::VERSION, 0]);
            bytes.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes.extend(layout);
            bytes
        }

        pub(crate) fn build(&self) -> Btf {
            Btf::parse(self.bytes(), None).unwrap()
        }

        pub(crate) fn build_on(&self, base: &Arc<Btf>) -> Btf {
            Btf::parse(self.bytes(), Some(Arc::clone(base))).unwrap()
        }
    }

    pub(crate) fn info(kind: u8, length: usize) -> u32 {
        u32::from(kind) << 24 | u32::try_from(length).unwrap()
    }

    /// With kind_flag.
    pub(crate) fn flagged(info: u32) -> u32 {
        info | 1 << 31
    }

    /// A small generator of numbers (xorshift), the same in every run.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 16).unwrap() % end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::synthetic::{Builder, Random, flagged, info};
    use super::*;

    /// A bit of everything.
    fn sample() -> Builder {
        let mut builder = Builder::new();
        let byte = builder.int("unsigned char", 1);
        let word = builder.int("unsigned int", 4);
        let u32_type = builder.typedef("u32", word);
        let volatile = builder.modifier(kind::VOLATILE, "", u32_type);
        let inner = builder.structure("", 8, &[("mark", volatile, 0), ("hash", u32_type, 32)]);
        let either = builder.union("", 8, &[("whole", byte, 0), ("", inner, 0)]);
        let headers = builder.array(byte, 48);
        let node = builder.structure("node", 12, &[("id", word, 0), ("count", word, 64)]);
        let nodes = builder.array(node, 2);
        builder.structure(
            "packet",
            100,
            &[("length", word, 0), ("", either, 64), ("cb", headers, 128), ("nodes", nodes, 512)],
        );
        let own = [builder.string("flag"), byte, 3 | 2 << 24];
        builder.add("bits", flagged(info(kind::STRUCT, 1)), 4, &own);
        builder.enumeration("colour", &[("RED", 0), ("BLUE", 0xffff_ffff)]);
        let names = [builder.string("LOW"), u32::MAX, u32::MAX, builder.string("HIGH"), 1, 2];
        builder.add("wide", flagged(info(kind::ENUM64, 2)), 8, &names);
        let constant = builder.modifier(kind::CONST, "", 10);
        let pointer = builder.pointer(constant);
        let proto = builder.proto(&[("packet", pointer), ("mark", u32_type), ("", 0)]);
        builder.func("drop_packet", proto);
        let pointer = builder.pointer(proto);
        builder.typedef("drop_t", pointer);
        builder
    }

    #[test]
    fn finds_fields() {
        let btf = sample().build();
        let field = |path| btf.field("packet", path).map(|field| (field.offset, field.size, field.bits));
        assert_eq!(field("length"), Some((0, 4, None)));
        assert_eq!(field("mark"), Some((8, 4, None)), "inside a struct inside a union, without names");
        assert_eq!(field("hash"), Some((12, 4, None)));
        assert_eq!(field("cb"), Some((16, 48, None)));
        assert_eq!(field("cb[7]"), Some((23, 1, None)));
        assert_eq!(field("nodes"), Some((64, 24, None)));
        assert_eq!(field("nodes[1].count"), Some((84, 4, None)));
        assert_eq!(btf.size_of("packet"), Some(100));
        for absent in
            ["", ".", "nodes[2].count", "nodes[", "nodes[x]", "length.x", "mark[0]", "gone", "nodes.id"]
        {
            assert_eq!(field(absent), None, "{absent}");
        }
        assert_eq!(btf.field("gone", "length"), None);
        assert_eq!(btf.size_of("colour"), None, "an enum is no struct");
    }

    #[test]
    fn a_bitfield_is_found_by_its_first_byte() {
        let bits = [(3_u32, 0), (8, 1), (23, 2)];
        for (bit, byte) in bits {
            let mut builder = Builder::new();
            let int = builder.int("unsigned char", 1);
            let own = [builder.string("flag"), int, bit | 2 << 24];
            builder.add("bits", flagged(info(kind::STRUCT, 1)), 4, &own);
            let field = builder.build().field("bits", "flag");
            assert_eq!(field, Some(Field { offset: byte, size: 1, bits: Some(2) }));
        }
    }

    #[test]
    fn reads_enums() {
        let btf = sample().build();
        let values = |name| {
            let values = btf.enum_values(name)?;
            Some(values.iter().map(|value| (value.name.to_owned(), value.value)).collect::<Vec<_>>())
        };
        assert_eq!(values("colour"), Some(vec![("RED".into(), 0), ("BLUE".into(), 0xffff_ffff)]));
        assert_eq!(values("wide"), Some(vec![("LOW".into(), -1), ("HIGH".into(), 0x2_0000_0001)]));
        assert_eq!(values("packet"), None);
        assert_eq!(btf.enum_names().collect::<Vec<_>>(), ["colour", "wide"]);
    }

    #[test]
    fn reads_arguments() {
        let btf = sample().build();
        let expected = [
            Argument { name: "packet", type_name: "packet", pointers: 1 },
            Argument { name: "mark", type_name: "unsigned int", pointers: 0 },
            Argument { name: "", type_name: "void", pointers: 0 },
        ];
        assert_eq!(btf.func_arguments("drop_packet").unwrap(), expected);
        assert_eq!(btf.typedef_arguments("drop_t").unwrap(), expected);
        assert_eq!(btf.typedef_arguments("u32"), None);
        assert!(btf.has_func("drop_packet") && !btf.has_func("drop_t") && !btf.has_func("packet"));
    }

    #[test]
    fn split_btf_goes_on_where_its_base_ends() {
        let base = Arc::new(sample().build());
        let mut module = Builder::on(&base);
        let pointer = module.pointer(10);
        module.structure("wrapper", 112, &[("next", pointer, 0), ("packet", 10, 64)]);
        module.enumeration("module_drop_reason", &[("LOST", 1)]);
        let module = module.build_on(&base);
        assert_eq!(module.offset_of("wrapper", "packet.mark"), Some(16));
        assert_eq!(module.offset_of("packet", "mark"), Some(8), "the base's types are found too");
        assert_eq!(module.enum_names().collect::<Vec<_>>(), ["module_drop_reason"], "but listed only there");
        assert_eq!(base.offset_of("wrapper", "packet"), None);
    }

    #[test]
    fn steps_over_kinds_that_the_layout_section_explains() {
        let mut builder = Builder::new();
        builder.add("new", info(20, 2), 0, &[1, 2, 3]); // 4 bytes, and 4 for each of two.
        builder.structure("after", 16, &[]);
        let mut layout = vec![0; 20 * 4];
        layout.extend([4, 4, 0, 0]);
        let btf = Btf::parse(builder.bytes_with_layout(&layout), None).unwrap();
        assert_eq!(btf.size_of("after"), Some(16));
        let error = Btf::parse(builder.bytes(), None).unwrap_err();
        assert_eq!(error.to_string(), "damaged BTF: type 1: its kind is unknown");
    }

    #[test]
    fn chains_and_nests_without_end_are_given_up() {
        let mut builder = Builder::new();
        builder.typedef("loop", 1); // 1: itself
        builder.structure("outer", 8, &[("", 2, 0), ("", 2, 0), ("x", 1, 0)]); // 2: holds itself, twice
        builder.array(3, u32::MAX); // 3: of itself
        builder.structure("arrays", 8, &[("a", 3, 0), ("x", 0, 0)]);
        builder.pointer(5); // 5: to itself
        let proto = builder.proto(&[("p", 5)]);
        builder.func("f", proto);
        let members: Vec<_> = (0..60_000).map(|_| ("", 8, 0)).collect();
        builder.structure("wide", 8, &members); // 8: holds itself, 60,000 times
        let btf = builder.build();
        assert_eq!(btf.field("outer", "x.y"), None);
        assert_eq!(btf.field("outer", "gone"), None);
        assert_eq!(btf.field("arrays", "a[7]"), None);
        assert_eq!(btf.func_arguments("f"), None);
        assert_eq!(btf.field("wide", "gone"), None);
    }

    #[test]
    fn says_what_is_wrong_with_a_file() {
        let good = sample().bytes();
        let message = |bytes: &[u8]| Btf::parse(bytes.to_vec(), None).unwrap_err().to_string();
        assert_eq!(message(b""), "damaged BTF: it does not start with BTF's header");
        assert_eq!(message(&good[..good.len() - 1]), "damaged BTF: a section lies outside the file");
        let mut swapped = good.clone();
        swapped.swap(0, 1);
        assert!(message(&swapped).contains("byte order"));
        let mut no_end = good.clone();
        *no_end.last_mut().unwrap() = b'x';
        assert_eq!(message(&no_end), "damaged BTF: the last string has no end");
        let mut odd = good;
        odd[12..16].copy_from_slice(&100_u32.to_ne_bytes()); // type_len
        assert_eq!(message(&odd), "damaged BTF: type 6: it is cut off");
    }

    /// Everything that anyone asks of BTF.
    fn ask_everything(btf: &Btf) {
        let _ = super::super::offsets::resolve(btf, Some(btf));
        let _ = super::super::reasons::Reasons::from_vmlinux(btf);
        for name in ["packet", "bits", "node"] {
            for path in ["length", "mark", "nodes[1].count", "gone", "flag"] {
                let _ = btf.field(name, path);
            }
        }
        let _ = btf.enum_values("wide");
        let _ = btf.func_arguments("drop_packet");
        let _ = btf.typedef_arguments("drop_t");
    }

    #[test]
    fn damaged_bytes_give_errors_or_nothing() {
        let good = sample().bytes();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut parsed = 0;
        for round in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=round % 4 {
                let at = random.below(bytes.len());
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
            if round % 8 == 0 {
                bytes.truncate(random.below(bytes.len()));
            }
            if let Ok(btf) = Btf::parse(bytes, None) {
                parsed += 1;
                ask_everything(&btf);
            }
        }
        assert!(parsed > 1000, "the interesting ones are those that parse: {parsed}");
    }

    #[test]
    fn damaged_bytes_of_a_real_kernel_give_errors_or_nothing() {
        let Ok(good) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let types = Header::parse(&good).unwrap().types;
        for round in 0..24 {
            let mut bytes = good.clone();
            for _ in 0..200 {
                // Names and type references are hit far more often than lengths, so that many files still parse.
                let word = types.start + random.below(types.len() / 4) * 4;
                let at = if round % 2 == 0 { random.below(bytes.len()) } else { word };
                bytes[at] ^= 1 << random.below(8);
            }
            if round % 8 == 0 {
                bytes.truncate(random.below(bytes.len()));
            }
            if let Ok(btf) = Btf::parse(bytes, None) {
                ask_everything(&btf);
            }
        }
    }

    #[test]
    fn files_that_are_not_there() {
        let dir = BtfDir::new("/nonexistent");
        let message = dir.load_vmlinux().unwrap_err().to_string();
        assert!(
            message.contains("/nonexistent/vmlinux") && message.contains("CONFIG_DEBUG_INFO_BTF"),
            "{message}"
        );
        let base = Arc::new(sample().build());
        assert!(dir.load_module("nf_conntrack", &base).unwrap().is_none());
        for name in ["", "..", "a/b", "../vmlinux"] {
            assert!(matches!(dir.load_module(name, &base), Err(BtfError::ModuleName(_))), "{name}");
        }
    }
}
