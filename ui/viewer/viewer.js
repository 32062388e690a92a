// A mesh that turns under the mouse, in WebGL without a library: reads a binary glTF with positions, indices and vertex colours.

const VERTEX = `
attribute vec3 position, normal, color;
uniform mat4 view;
uniform mat3 turn;
varying vec3 shown;
void main() {
    float light = 0.45 + 0.55 * abs((turn * normal).z);
    shown = pow(color, vec3(1.0 / 2.2)) * light;
    gl_Position = view * vec4(position, 1.0);
}`;
const FRAGMENT = `
precision mediump float;
varying vec3 shown;
void main() { gl_FragColor = vec4(shown, 1.0); }`;
const ARRAYS = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
const WHOLE = 1.4; // a mesh that reaches as far is seen as a whole, however it is turned, at the distance of 3
const SIZES = { SCALAR: 1, VEC3: 3, VEC4: 4 };

const viewers = new Map(); // by canvas; there is one module for all of them
let pen = null; // draws all meshes, in one WebGL context: browsers give a page 16

export default function ({ data, parentElement }) { // called anew with the same canvas when the theme is another
    const canvas = parentElement.querySelector("canvas");
    canvas.setAttribute("aria-label", data.label);
    const before = viewers.get(canvas);
    before?.stop();
    const seen = before?.seen ?? { yaw: 0.6, pitch: 0.3, distance: 3 };
    let mesh = null, isNear = false, asked = 0;
    const show = () => { // what is far from the screen keeps its picture, and is drawn when it comes near
        if (!isNear) return;
        cancelAnimationFrame(asked);
        asked = requestAnimationFrame(() => {
            const width = Math.floor(canvas.clientWidth * devicePixelRatio);
            const height = Math.floor(canvas.clientHeight * devicePixelRatio);
            if (!width || !height) return;
            mesh ??= centred(readGlb(Uint8Array.from(atob(data.glb), (c) => c.charCodeAt(0)).buffer));
            pen ??= newPen();
            const picture = pen?.(mesh, seen, width, height);
            if (picture) {
                canvas.width = width;
                canvas.height = height;
                canvas.getContext("2d").drawImage(picture, 0, 0);
                canvas.dataset.turned = `${seen.yaw.toFixed(2)} ${seen.pitch.toFixed(2)} ${seen.distance.toFixed(2)}`;
            } else if (!pen && !canvas.dataset.turned) {
                parentElement.querySelector(".hint").textContent = "This browser has no WebGL; the turning picture is among the downloads.";
            }
        });
    };
    const sizes = new ResizeObserver(show);
    sizes.observe(canvas);
    const places = new IntersectionObserver((entries) => {
        isNear = entries.at(-1).isIntersecting;
        show();
    }, { scrollMargin: "100%" });
    places.observe(canvas);
    const deafen = listen(canvas, seen, show);
    const stop = () => {
        sizes.disconnect();
        places.disconnect();
        deafen();
        cancelAnimationFrame(asked);
        viewers.delete(canvas);
    };
    viewers.set(canvas, { seen, show, stop });
    return () => viewers.get(canvas)?.stop();
}

function listen(canvas, seen, show) {
    const turn = (yaw, pitch) => {
        seen.yaw += yaw;
        seen.pitch = Math.max(-1.5, Math.min(1.5, seen.pitch + pitch));
        show();
    };
    const zoom = (factor) => {
        seen.distance = Math.max(1.3, Math.min(12, seen.distance * factor));
        show();
    };
    const keys = {
        ArrowLeft: () => turn(-0.15, 0), ArrowRight: () => turn(0.15, 0),
        ArrowUp: () => turn(0, -0.15), ArrowDown: () => turn(0, 0.15),
        "+": () => zoom(0.9), "-": () => zoom(1.1),
    };
    const handlers = {
        pointerdown: (event) => canvas.setPointerCapture(event.pointerId),
        pointermove: (event) => event.buttons && turn(event.movementX * 0.01, event.movementY * 0.01),
        wheel: (event) => { event.preventDefault(); zoom(Math.exp(event.deltaY * 0.001)); },
        keydown: (event) => { if (keys[event.key]) { event.preventDefault(); keys[event.key](); } },
        contextrestored: show,
    };
    for (const [name, handler] of Object.entries(handlers)) canvas.addEventListener(name, handler, { passive: false });
    return () => { for (const [name, handler] of Object.entries(handlers)) canvas.removeEventListener(name, handler); };
}

function readGlb(buffer) {
    const head = new DataView(buffer);
    const jsonBytes = head.getUint32(12, true);
    const gltf = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, jsonBytes)));
    const start = 20 + jsonBytes + 8;
    const read = (number) => {
        const accessor = gltf.accessors[number], view = gltf.bufferViews[accessor.bufferView];
        const size = SIZES[accessor.type], Kind = ARRAYS[accessor.componentType];
        const offset = start + (view.byteOffset || 0) + (accessor.byteOffset || 0);
        const stride = view.byteStride || size * Kind.BYTES_PER_ELEMENT;
        const full = Kind === Float32Array ? 1 : 2 ** (8 * Kind.BYTES_PER_ELEMENT) - 1;
        const values = new Array(accessor.count * size);
        for (let i = 0; i < accessor.count; i++) {
            const row = new Kind(buffer.slice(offset + i * stride, offset + i * stride + size * Kind.BYTES_PER_ELEMENT));
            for (let j = 0; j < size; j++) values[i * size + j] = accessor.normalized ? row[j] / full : row[j];
        }
        return { values, size };
    };
    const part = gltf.meshes[0].primitives[0];
    const node = (gltf.nodes || []).find((each) => each.mesh === 0) || {};
    const positions = turned(read(part.attributes.POSITION).values, node.rotation);
    const colors = part.attributes.COLOR_0 === undefined ? null : read(part.attributes.COLOR_0);
    const indices = part.indices === undefined ? positions.map((_, i) => i).slice(0, positions.length / 3) : read(part.indices).values;
    return { positions, indices, colors: threes(colors, positions.length / 3) };
}

function turned(positions, rotation) {
    if (!rotation) return positions;
    const [x, y, z, w] = rotation;
    const cross = ([a, b, c]) => [y * c - z * b, z * a - x * c, x * b - y * a];
    const all = [];
    for (let i = 0; i < positions.length; i += 3) {
        const point = positions.slice(i, i + 3), once = cross(point), twice = cross(once);
        all.push(...point.map((value, j) => value + 2 * (w * once[j] + twice[j])));
    }
    return all;
}

function threes(colors, count) {
    if (!colors) return new Array(count * 3).fill(0.5);
    return colors.size === 3 ? colors.values : colors.values.filter((_, i) => i % 4 < 3);
}

function centred({ positions, indices, colors }) {
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    positions.forEach((value, i) => { low[i % 3] = Math.min(low[i % 3], value); high[i % 3] = Math.max(high[i % 3], value); });
    const around = positions.map((value, i) => value - (low[i % 3] + high[i % 3]) / 2);
    let reach = 1e-9; // from the middle to what is farthest
    for (let i = 0; i < around.length; i += 3) reach = Math.max(reach, Math.hypot(around[i], around[i + 1], around[i + 2]));
    const moved = around.map((value) => value * WHOLE / reach);
    const normals = normalsOf(moved, indices);
    const [position, normal, color] = [moved, normals, colors].map((values) => new Float32Array(values));
    return { position, normal, color, indices: new Uint32Array(indices) };
}

function normalsOf(p, indices) {
    const normals = new Array(p.length).fill(0);
    for (let i = 0; i < indices.length; i += 3) {
        const [a, b, c] = [indices[i] * 3, indices[i + 1] * 3, indices[i + 2] * 3];
        const u = [p[b] - p[a], p[b + 1] - p[a + 1], p[b + 2] - p[a + 2]];
        const v = [p[c] - p[a], p[c + 1] - p[a + 1], p[c + 2] - p[a + 2]];
        const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
        for (const corner of [a, b, c]) for (let j = 0; j < 3; j++) normals[corner + j] += n[j];
    }
    for (let i = 0; i < normals.length; i += 3) {
        const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
        for (let j = 0; j < 3; j++) normals[i + j] /= length;
    }
    return normals;
}

function newPen() { // returns what draws a mesh and gives the canvas that it is on; null where there is no WebGL
    const canvas = document.createElement("canvas");
    const gl = canvas.getContext("webgl", { antialias: true });
    if (!gl || !gl.getExtension("OES_element_index_uint")) return null;
    canvas.addEventListener("webglcontextlost", () => {
        pen = null;
        for (const { show } of viewers.values()) show();
    });
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, text);
        gl.compileShader(shader);
        gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    const buffers = ["position", "normal", "color"].map((name) => {
        const buffer = gl.createBuffer(), place = gl.getAttribLocation(program, name);
        gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
        gl.enableVertexAttribArray(place);
        gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
        return [name, buffer];
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    const view = gl.getUniformLocation(program, "view"), turn = gl.getUniformLocation(program, "turn");
    let loaded = null;
    const load = (mesh) => {
        for (const [name, buffer] of buffers) {
            gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
            gl.bufferData(gl.ARRAY_BUFFER, mesh[name], gl.STATIC_DRAW);
        }
        gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.indices, gl.STATIC_DRAW);
        loaded = mesh;
    };
    return (mesh, seen, width, height) => {
        if (canvas.width !== width) canvas.width = width;
        if (canvas.height !== height) canvas.height = height;
        if (loaded !== mesh) load(mesh);
        gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
        gl.clearColor(0, 0, 0, 0);
        gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
        const r = turning(seen);
        gl.uniformMatrix3fv(turn, false, r);
        gl.uniformMatrix4fv(view, false, projected(r, seen.distance, width / height));
        gl.drawElements(gl.TRIANGLES, mesh.indices.length, gl.UNSIGNED_INT, 0);
        return gl.isContextLost() ? null : canvas; // what lost it draws all anew
    };
}

function turning({ yaw, pitch }) { // columns: about y by yaw, then about x by pitch
    const [a, b, c, d] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    return [a, b * d, -b * c, 0, c, d, b, -a * d, a * c];
}

function projected(r, distance, aspect) { // perspective · move away · turn, in columns
    const f = 1.8, near = 0.1, far = 30;
    const [x, y] = aspect > 1 ? [f / aspect, f] : [f, f * aspect];
    const k = (far + near) / (near - far), m = (2 * far * near) / (near - far);
    const column = (i) => [x * r[i], y * r[i + 1], k * r[i + 2], -r[i + 2]];
    return [...column(0), ...column(3), ...column(6), 0, 0, -k * distance + m, distance];
}
