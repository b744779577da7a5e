//! What a terminal shows in the end: just as much of one as our programs need.

/// A character and its colour, by its number in the standard (31 is red); 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) letter: char,
    pub(crate) colour: u8,
}

/// A row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Line(pub(crate) Vec<Cell>);

impl Line {
    pub(crate) fn plain(text: &str) -> Self {
        let cell = |letter| Cell { letter, colour: 0 };
        Self(text.chars().map(cell).collect())
    }

    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|cell| cell.letter).collect()
    }
}

/// A screen of any height.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    lines: Vec<Line>,
    row: usize,
    column: usize,
    colour: u8,
}

impl Screen {
    /// What is shown after `output`, without empty lines at its end.
    pub(crate) fn after(output: &str) -> Vec<Line> {
        let mut screen = Self::default();
        let mut letters = output.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '\r' => screen.column = 0,
                '\n' => screen.row += 1,
                '\u{8}' => screen.column = screen.column.saturating_sub(1),
                '\x1b' => screen.obey(&mut letters),
                letter if letter.is_control() => {}
                letter => screen.put(letter),
            }
        }
        let is_empty = |line: &Line| line.text().trim().is_empty();
        while screen.lines.last().is_some_and(is_empty) {
            screen.lines.pop();
        }
        screen.lines
    }

    fn put(&mut self, letter: char) {
        if self.lines.len() <= self.row {
            self.lines.resize(self.row + 1, Line::default());
        }
        let line = &mut self.lines[self.row].0;
        let blank = Cell {
            letter: ' ',
            colour: 0,
        };
        if line.len() <= self.column {
            line.resize(self.column + 1, blank);
        }
        line[self.column] = Cell {
            letter,
            colour: self.colour,
        };
        self.column += 1;
    }

    /// A control sequence, of which the escape has been read. Those that are not known change nothing.
    fn obey(&mut self, letters: &mut std::str::Chars<'_>) {
        if letters.next() != Some('[') {
            return;
        }
        let mut parameters = String::new();
        let command = loop {
            match letters.next() {
                Some(letter) if letter.is_ascii_alphabetic() => break letter,
                Some(letter) => parameters.push(letter),
                None => return,
            }
        };
        let number = parameters.split(';').next().unwrap_or_default();
        let number: usize = number.parse().unwrap_or(0);
        match command {
            'm' => self.colour = u8::try_from(number).unwrap_or(0),
            'A' => self.row = self.row.saturating_sub(number.max(1)),
            'B' => self.row += number.max(1),
            'G' => self.column = number.saturating_sub(1),
            'H' => (self.row, self.column) = (0, 0),
            'J' if number == 2 => self.lines.clear(),
            'J' => self.lines.truncate(self.row),
            'K' => {
                if let Some(line) = self.lines.get_mut(self.row) {
                    let kept = if number == 2 { 0 } else { self.column };
                    line.0.truncate(kept);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(output: &str) -> Vec<String> {
        Screen::after(output).iter().map(Line::text).collect()
    }

    #[test]
    fn a_bar_that_was_cleared_leaves_what_was_printed() {
        let drawn = "one\r\n\rbar 1\x1b[K\r\x1b[2Kbar 2\r\x1b[2K\rtwo\r\n";
        assert_eq!(text(drawn), ["one", "two"]);
        assert_eq!(text("a\r\nb\r\nc\x1b[1A\r\x1b[Jd\r\n"), ["a", "d"]);
    }

    #[test]
    fn of_a_screen_that_is_drawn_again_the_last_counts() {
        let drawn = "\x1b[H\x1b[2Jfirst\r\nmore\r\n\x1b[H\x1b[2J\x1b[32mlast\x1b[0m\r\n\r\n";
        assert_eq!(text(drawn), ["last"]);
        assert_eq!(Screen::after(drawn)[0].0[0].colour, 32);
    }
}
