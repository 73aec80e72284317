"use strict";
// Point clouds and camera pyramids side by side on one WebGL 2 canvas, all seen from one orbiting camera.

const POINT_SHADER = `#version 300 es
in vec3 position; in vec3 color; in float error; in vec3 normal;
uniform mat4 matrix; uniform vec3 low, extent, eye; uniform float size, threshold;
out vec3 shade;
void main() {
  vec3 point = low + extent * position;
  gl_Position = dot(eye - point, normal) < 0.0 ? vec4(2.0, 2.0, 2.0, 1.0) : matrix * vec4(point, 1.0); // backs are not drawn
  gl_PointSize = clamp(size / gl_Position.w, 1.0, 48.0);
  shade = error > threshold ? vec3(0.0, 0.784, 0.325) : color;
}`;
const DOT_SHADER = `#version 300 es
precision mediump float; in vec3 shade; out vec4 pixel;
void main() { if (length(gl_PointCoord - 0.5) > 0.5) discard; pixel = vec4(shade, 1.0); }`;
const LINE_SHADER = `#version 300 es
in vec3 position; uniform mat4 matrix;
void main() { gl_Position = matrix * vec4(position, 1.0); }`;
const COLOR_SHADER = `#version 300 es
precision mediump float; uniform vec4 shade; out vec4 pixel;
void main() { pixel = shade; }`;

const EDGES = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]]; // of a pyramid of five corners
const OWN_CAMERAS = [0.839, 0.153, 0.157, 1], REFERENCE_CAMERAS = [0.55, 0.58, 0.63, 1];
const FIELD_OF_VIEW = 0.84, POINT_SIZE = 0.014, CLOSER = 0.5; // radians; share of the scene's unit; than the eye given

const add = (a, b, s = 1) => a.map((x, i) => x + s * b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => add([0, 0, 0], a, 1 / Math.hypot(...a));
const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

class Orbit { // the one camera: around a target, upright
  constructor(target, eye, up, length) {
    this.up = unit(up);
    this.length = length;
    const away = add(eye, target, -1);
    this.back = unit(add(away, this.up, -dot(away, this.up)));
    this.right = cross(this.up, this.back);
    this.start = { target, eye: add(target, away, CLOSER) };
    this.reset();
  }
  reset() { this.stand(this.start.eye, this.start.target); }
  stand(eye, target) {
    const away = add(eye, target, -1), direction = unit(away);
    this.target = target;
    this.distance = Math.hypot(...away);
    this.pitch = Math.asin(Math.max(-1, Math.min(1, dot(direction, this.up))));
    this.yaw = Math.atan2(dot(direction, this.right), dot(direction, this.back));
  }
  axes() { // right, up and backward of the view
    const level = add(add([0, 0, 0], this.back, Math.cos(this.yaw)), this.right, Math.sin(this.yaw));
    const backward = add(add([0, 0, 0], level, Math.cos(this.pitch)), this.up, Math.sin(this.pitch));
    const right = unit(cross(this.up, backward));
    return [right, cross(backward, right), backward];
  }
  eye() { return add(this.target, this.axes()[2], this.distance); }
  turn(dx, dy) {
    this.yaw -= dx;
    this.pitch = Math.max(-1.55, Math.min(1.55, this.pitch + dy));
  }
  move(dx, dy) { // in shares of the distance
    const [right, up] = this.axes();
    this.target = add(add(this.target, right, -dx * this.distance), up, dy * this.distance);
  }
  zoom(factor) { this.distance = Math.max(0.02 * this.length, Math.min(60 * this.length, this.distance * factor)); }
  matrix(aspect) { // world to clip space, by columns
    const axes = this.axes(), eye = this.eye();
    const focal = 1 / Math.tan(FIELD_OF_VIEW / 2), near = 0.01 * this.length, far = 120 * this.length;
    const fx = aspect < 1 ? focal : focal / aspect, fy = aspect < 1 ? focal * aspect : focal;
    const a = (far + near) / (near - far), b = (2 * far * near) / (near - far);
    const view = axes.map((axis) => [...axis, -dot(axis, eye)]);
    const rows = [view[0].map((x) => fx * x), view[1].map((x) => fy * x), view[2].map((x) => a * x), view[2].map((x) => -x)];
    rows[2][3] += b;
    return new Float32Array([0, 1, 2, 3].flatMap((column) => rows.map((row) => row[column])));
  }
  pixels(height, aspect) { return height / 2 / Math.tan(FIELD_OF_VIEW / 2) * Math.min(1, aspect); }
}

class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", { antialias: true });
    if (!this.gl) throw new Error("This browser does not offer WebGL 2, which the 3D views need.");
    this.options = { threshold: 2, cameras: true, size: 1 };
    this.panels = []; // {column, element}
    this.build();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => { this.build(); this.load(this.scene, this.orbit); });
    new ResizeObserver(() => this.redraw()).observe(canvas);
    this.listen();
  }
  build() {
    this.points = this.program(POINT_SHADER, DOT_SHADER);
    this.lines = this.program(LINE_SHADER, COLOR_SHADER);
    this.gl.enable(this.gl.DEPTH_TEST);
  }
  program(...sources) {
    const gl = this.gl, program = gl.createProgram();
    sources.forEach((source, index) => {
      const shader = gl.createShader(index ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    });
    ["position", "color", "error", "normal"].forEach((name, index) => gl.bindAttribLocation(program, index, name));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(program));
    return program;
  }
  load(scene, orbit) { // buffers of all columns; those of the scene before are given back
    for (const { buffers, arrays } of this.loaded ?? []) {
      buffers.forEach((buffer) => this.gl.deleteBuffer(buffer));
      arrays.forEach((array) => this.gl.deleteVertexArray(array));
    }
    const length = scene.unit, { middle, eye, up } = scene;
    this.scene = scene;
    this.orbit = orbit ?? new Orbit(middle, eye, up, length);
    this.loaded = scene.columns.map((column) => this.upload(column));
    this.redraw();
  }
  upload(column) {
    const gl = this.gl, buffers = [], arrays = [gl.createVertexArray(), gl.createVertexArray()];
    const attribute = (place, data, width, type) => {
      buffers.push(gl.createBuffer());
      gl.bindBuffer(gl.ARRAY_BUFFER, buffers.at(-1));
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, width, type, type !== gl.FLOAT, 0, 0);
    };
    gl.bindVertexArray(arrays[0]);
    attribute(0, bytesOf(column.positions), 3, gl.UNSIGNED_SHORT);
    attribute(1, bytesOf(column.colors), 3, gl.UNSIGNED_BYTE);
    attribute(2, bytesOf(column.errors), 1, gl.UNSIGNED_SHORT);
    attribute(3, bytesOf(column.normals), 3, gl.BYTE);
    const corners = column.pyramids, ends = [];
    for (let first = 0; first < corners.length; first += 15)
      for (const edge of EDGES) for (const corner of edge) ends.push(...corners.slice(first + 3 * corner, first + 3 * corner + 3));
    gl.bindVertexArray(arrays[1]);
    attribute(0, new Float32Array(ends), 3, gl.FLOAT);
    return { buffers, arrays, count: column.drawn, ends: ends.length / 3 };
  }
  redraw() {
    this.waiting ??= requestAnimationFrame(() => { this.waiting = undefined; this.draw(); });
  }
  draw() {
    const gl = this.gl, canvas = this.canvas, ratio = window.devicePixelRatio || 1;
    const box = canvas.getBoundingClientRect();
    const width = Math.round(box.width * ratio), height = Math.round(box.height * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(1, 1, 1, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    for (const { column, element } of this.panels) {
      const panel = element.getBoundingClientRect();
      const area = [panel.left - box.left, box.bottom - panel.bottom, panel.width, panel.height].map((x) => Math.round(x * ratio));
      gl.viewport(...area);
      gl.scissor(...area);
      this.drawColumn(column, this.orbit.matrix(area[2] / area[3]), this.orbit.pixels(area[3], area[2] / area[3]));
    }
  }
  drawColumn(index, matrix, pixels) {
    const gl = this.gl, column = this.scene.columns[index], { arrays, count } = this.loaded[index];
    const place = (name) => gl.getUniformLocation(this.points, name);
    gl.useProgram(this.points);
    gl.uniformMatrix4fv(place("matrix"), false, matrix);
    gl.uniform3fv(place("low"), column.low);
    gl.uniform3fv(place("extent"), column.extent);
    gl.uniform3fv(place("eye"), this.orbit.eye());
    gl.uniform1f(place("threshold"), this.options.threshold);
    gl.uniform1f(place("size"), POINT_SIZE * this.options.size * this.scene.unit * pixels);
    gl.bindVertexArray(arrays[0]);
    gl.drawArrays(gl.POINTS, 0, count);
    if (!this.options.cameras) return;
    const reference = this.scene.columns.findIndex((each) => each.isReference);
    if (index !== reference && reference >= 0) this.drawCameras(reference, matrix, REFERENCE_CAMERAS);
    this.drawCameras(index, matrix, OWN_CAMERAS);
  }
  drawCameras(index, matrix, color) {
    const gl = this.gl, { arrays, ends } = this.loaded[index];
    gl.useProgram(this.lines);
    gl.uniformMatrix4fv(gl.getUniformLocation(this.lines, "matrix"), false, matrix);
    gl.uniform4fv(gl.getUniformLocation(this.lines, "shade"), color);
    gl.bindVertexArray(arrays[1]);
    gl.drawArrays(gl.LINES, 0, ends);
  }
  listen() {
    const canvas = this.canvas, fingers = new Map();
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const dx = event.clientX - before[0], dy = event.clientY - before[1];
      if (fingers.size === 2) {
        const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
        const spread = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
        this.orbit.zoom(spread(before) / Math.max(1, spread([event.clientX, event.clientY])));
        this.orbit.move(dx / 1200, dy / 1200);
      } else if (event.shiftKey || event.buttons & 6) this.orbit.move(dx / 600, dy / 600);
      else this.orbit.turn(dx / 150, dy / 150);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      this.redraw();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.orbit.zoom(Math.exp(Math.max(-0.5, Math.min(0.5, event.deltaY / 600))));
      this.redraw();
    }, { passive: false });
  }
}
