// The gaze over a photo: the same light as in the figures. Keys' cubic between the middles of the
// regions, edges repeated, nothing outside what the encoder saw.
function shares(cells, pixels, start, end) {
  const rows = [];
  for (let pixel = 0; pixel < pixels; pixel++) {
    const at = (pixel + 0.5) / pixels;
    if (at < start || at > end) { rows.push([]); continue; }
    const position = (at - start) / (end - start) * cells - 0.5;
    const row = [];
    for (let step = -1; step < 3; step++) {
      const cell = Math.floor(position) + step, away = Math.abs(position - cell);
      const share = away <= 1 ? (1.5 * away - 2.5) * away ** 2 + 1
        : ((-0.5 * away + 2.5) * away - 4) * away + 2;
      row.push([Math.min(Math.max(cell, 0), cells - 1), share]);
    }
    rows.push(row);
  }
  return rows;
}

// Draws on a canvas of width x height pixels, over a photo; weights are row by row, and seen is
// left, top, right, bottom of what the encoder saw, in parts of the photo.
function light(canvas, width, height, weights, [high, wide], [left, top, right, bottom]) {
  canvas.width = width;
  canvas.height = height;
  const down = shares(high, height, top, bottom), across = shares(wide, width, left, right);
  const map = new Float32Array(width * height);
  let most = 1e-12;
  for (let y = 0; y < height; y++) {
    const line = new Float32Array(wide);
    for (const [cell, share] of down[y])
      for (let x = 0; x < wide; x++) line[x] += share * weights[cell * wide + x];
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (const [cell, share] of across[x]) sum += share * line[cell];
      map[y * width + x] = Math.max(sum, 0);
      most = Math.max(most, sum);
    }
  }
  // The photo under a grey of this opacity is the photo times (0.16 + 0.84 light), lifted by
  // 0.22 light² towards white: the dark keeps some shape, and black things do not stay black.
  const drawing = canvas.getContext("2d"), image = drawing.createImageData(width, height);
  map.forEach((value, i) => {
    const lit = value / most, lift = 0.22 * lit ** 2, cover = 0.84 * (1 - lit) + lift;
    image.data.fill(255 * lift / cover, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255 * cover;
  });
  drawing.putImageData(image, 0, 0);
}

// Words that a person points at, taps to keep, or walks along with the arrow keys. One is shown at a
// time, of all rows of buttons: show is given it, or null.
function watch(rows, show) {
  let kept = null, over = null, shown = null;
  function look() {
    const word = over || kept;
    if (word === shown) return;
    if (shown) shown.classList.remove("on");
    shown = word;
    if (word) word.classList.add("on");
    show(word);
  }
  function keep(word) {
    if (kept) kept.setAttribute("aria-pressed", "false");
    kept = kept === word ? null : word;
    if (kept) kept.setAttribute("aria-pressed", "true");
    look();
  }
  for (const row of rows) {
    row.forEach((word, i) => {
      word.tabIndex = i ? -1 : 0;
      word.setAttribute("aria-pressed", "false");
      const enter = () => { over = word; look(); };
      const leave = () => { if (over === word) over = null; look(); };
      word.addEventListener("pointerenter", enter);
      word.addEventListener("pointerleave", leave);
      word.addEventListener("focus", () => {
        for (const other of row) other.tabIndex = other === word ? 0 : -1;
        if (word.matches(":focus-visible")) enter();
      });
      word.addEventListener("blur", leave);
      word.addEventListener("click", () => keep(word));
      word.addEventListener("keydown", (event) => {
        const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: row.length - 1 }[event.key];
        if (event.key === "Escape") { over = null; keep(null); }
        if (row[to]) { event.preventDefault(); row[to].focus(); }
      });
    });
  }
}

// The clipboard's own interface is not there for every page: for those on a disk, or of http.
async function copied(button, text) {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(text); } catch {
    const place = element("textarea", { value: text });
    document.body.append(place);
    place.select();
    document.execCommand("copy");
    place.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1200);
}

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
