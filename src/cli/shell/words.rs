//! Lines as words, and keys and values as text that comes back as the same words.
//!
//! Words stand between blanks. In single quotes everything is as it is; in double quotes, and outside of quotes, a backslash
//! begins an escape: `\n`, `\t`, `\r`, `\0`, `\xHH` for any byte, and whatever else follows it for itself.

/// Splits a line. What cannot be is said.
pub(super) fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut rest = line.iter().copied();
    while let Some(byte) = rest.next() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (None, b'\'' | b'"') => {
                word.get_or_insert_default();
                quote = Some(byte);
            }
            (None | Some(b'"'), b'\\') => word.get_or_insert_default().push(escaped(&mut rest)?),
            (None, _) if byte.is_ascii_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(byte),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

fn escaped(rest: &mut impl Iterator<Item = u8>) -> Result<u8, String> {
    let byte = rest.next().ok_or("nothing follows the backslash")?;
    Ok(match byte {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'0' => 0,
        b'x' => {
            let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
            let (high, low) = (digit(), digit());
            let number = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
            number.ok_or("\\x takes two digits, as in \\x0a")?
        }
        _ => byte,
    })
}

/// A key or a value on one line, without anything that a terminal would act on.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                '\\' => text.push_str("\\\\"),
                _ if character.is_control() => {
                    let mut buffer = [0; 4];
                    text.extend(character.encode_utf8(&mut buffer).bytes().map(hex));
                }
                _ => text.push(character),
            }
        }
        text.extend(chunk.invalid().iter().copied().map(hex));
    }
    text
}

fn hex(byte: u8) -> String {
    format!("\\x{byte:02x}")
}

/// A word that [`split`] reads as these bytes, in quotes where it takes them.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let text = shown(bytes);
    let is_plain = |c: char| !c.is_whitespace() && c != '\'' && c != '"';
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("\"{}\"", text.replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(line: &str) -> Vec<String> {
        let words = split(line.as_bytes()).unwrap();
        words.into_iter().map(|word| String::from_utf8(word).unwrap()).collect()
    }

    #[test]
    fn words_stand_between_blanks() {
        let none: &[&str] = &[];
        assert_eq!(texts("  "), none);
        assert_eq!(texts(" put\ta  b "), ["put", "a", "b"]);
        assert_eq!(texts("put 'a b' \"c \\\"d\\\"\" e\\ f"), ["put", "a b", "c \"d\"", "e f"]);
        assert_eq!(texts("a'b'\"c\" '' \"\""), ["abc", "", ""]);
        assert_eq!(texts(r"'\n' \n \x41 \\"), ["\\n", "\n", "A", "\\"]);
        assert_eq!(split(b"\\xff\\0").unwrap(), [vec![0xff, 0]]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (line, why) in [
            ("put 'a", "a quote is not closed"),
            ("put a\\", "nothing follows the backslash"),
            ("put \\xg0", "\\x takes two digits, as in \\x0a"),
            ("put \\x0", "\\x takes two digits, as in \\x0a"),
        ] {
            assert_eq!(split(line.as_bytes()), Err(why.to_owned()), "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_comes_back(bytes: Vec<u8>) {
            let word = quoted(&bytes);
            prop_assert!(!word.chars().any(char::is_control));
            prop_assert_eq!(split(word.as_bytes()), Ok(vec![bytes]));
        }
    }
}
