// A library module. Copy this folder to vitedge/ in the project, add include(":vitedge") to settings.gradle.kts, and to the
// app dependencies { implementation(project(":vitedge")) } beside androidResources { noCompress += "onnx" }.
plugins {
    id("com.android.library") // with a version before 9 add id("org.jetbrains.kotlin.android")
}

android {
    namespace = "vitedge.encoder"
    compileSdk = 36
    defaultConfig {
        minSdk = 24 // as the runtime asks
        consumerProguardFiles("consumer-rules.pro") // so that the app may be minified
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    sourceSets {
        getByName("main") { assets.srcDir("model") }
        getByName("androidTest") { assets.srcDir("golden") }
    }
    androidResources { noCompress += "onnx" } // so that the model can be mapped into memory
}

tasks.withType<Test>().configureEach { environment("ORT_DISABLE_TELEMETRY", "1") } // as OnnxRuntime.kt says

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.29.0")
    testImplementation("com.microsoft.onnxruntime:onnxruntime:1.29.0") // the same for the JVM of this machine
    testImplementation("junit:junit:4.13.2")
    androidTestImplementation("junit:junit:4.13.2")
    androidTestImplementation("androidx.test:runner:1.6.2")
}
